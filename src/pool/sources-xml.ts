import { SpindleError } from '../core/errors.ts';
import type { Discovery } from './backend.ts';
import type { PoolSource } from './definition.ts';
import { childOf, element, parseXml, textElement, writeXml } from './xml.ts';

/** libvirt's XML of sources that were found. */
export function sourcesXml(found: readonly Partial<PoolSource>[]): string {
  return writeXml(
    element(
      'sources',
      {},
      found.map(({ hosts = [], devices = [], dir, name, format }) =>
        element('source', {}, [
          ...hosts.map((host) =>
            element('host', {
              name: host.name,
              port: host.port === undefined ? undefined : String(host.port),
            }),
          ),
          ...devices.map((path) => element('device', { path })),
          dir === undefined ? undefined : element('dir', { path: dir }),
          textElement('name', name),
          format === undefined ? undefined : element('format', { type: format }),
        ]),
      ),
    ),
  );
}

/** Whom to ask for sources, from libvirt's XML of a source. @throws SpindleError BAD_XML */
export function sourcesOf(text: string, what: string): Discovery {
  const root = parseXml(text, what);
  if (root.name !== 'source')
    throw new SpindleError('BAD_XML', `${what}: the element is <${root.name}>, not <source>`);
  const host = childOf(root, 'host')?.attributes;
  const port = host?.['port'];
  return {
    host: host?.['name'],
    port: port === undefined ? undefined : Number(port),
    initiator: childOf(childOf(root, 'initiator'), 'iqn')?.attributes['name'],
  };
}
