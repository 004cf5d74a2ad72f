/*
 * The little that spindle needs to know about file names inside images, without the platform's path module.
 */

/** Whether a name begins with a protocol, such as `nbd:` or `json:`: a colon before the first slash. */
export function hasProtocol(name: string): boolean {
  const colon = name.indexOf(':');
  if (colon < 0) return false;
  const slash = name.indexOf('/');
  return slash < 0 || colon < slash;
}

/** The name of a local file: without a `file:` in front. Null when it names something else. */
export function localName(name: string): string | null {
  if (name.startsWith('file:')) return name.slice('file:'.length);
  return hasProtocol(name) ? null : name;
}

/**
 * A name as recorded in an image, seen from where the image is: relative names start in the directory of the image,
 * as its own name gives it.
 */
export function besideImage(name: string, image: string | undefined): string {
  if (name.startsWith('/') || image === undefined) return name;
  const own = localName(image) ?? image;
  return own.slice(0, own.lastIndexOf('/') + 1) + name;
}
