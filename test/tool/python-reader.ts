import { spawnSync } from 'node:child_process';
import { describe } from 'vitest';

/*
 * A reader of qcow2 images with deflate clusters that shares no code with spindle: Python's own zlib, with the window of 4 KiB
 * that other readers may insist on. Prints the SHA-256 of the disk and how many clusters it decoded.
 */
const READER = `
import hashlib, json, struct, sys, zlib
with open(sys.argv[1], 'rb') as file:
    image = file.read()
bits, size, l1_size, l1 = [struct.unpack_from(form, image, at)[0] for form, at in (('>I', 20), ('>Q', 24), ('>I', 36), ('>Q', 40))]
cluster = 1 << bits
digest, decoded = hashlib.sha256(), 0
for number in range(-(-size // cluster)):
    per = cluster // 8
    table = struct.unpack_from('>Q', image, l1 + number // per * 8)[0] & 0x00fffffffffffe00
    entry = struct.unpack_from('>Q', image, table + number % per * 8)[0] if table else 0
    length = min(cluster, size - number * cluster)
    if entry >> 62 & 1:
        split = 62 - (bits - 8)
        start = entry & ((1 << split) - 1)
        sectors = ((entry & ((1 << 62) - 1)) >> split) + 1
        stream = image[start:(start // 512 + sectors) * 512]
        data = zlib.decompressobj(-12).decompress(stream, cluster)
        decoded += 1
        if len(data) != cluster: sys.exit('cluster %d has %d bytes' % (number, len(data)))
    elif entry & 1 or not entry & 0x00fffffffffffe00: data = bytes(cluster)
    else:
        at = entry & 0x00fffffffffffe00
        data = image[at:at + cluster].ljust(cluster, b'\\0')
    digest.update(data[:length])
print(json.dumps({'sha256': digest.hexdigest(), 'decoded': decoded}))
`;

/** `describe`, skipped without Python. With SPINDLE_REQUIRE_JUDGES=1 it is never skipped. */
export function describeWithPython(name: string, block: () => void): void {
  const here = spawnSync('python3', ['-c', 'import zlib']).status === 0;
  describe.runIf(here || process.env['SPINDLE_REQUIRE_JUDGES'] === '1')(name, block);
}

/** What Python finds in an image. */
export function readWithPython(path: string): { readonly sha256: string; readonly decoded: number } {
  const { status, stdout, stderr } = spawnSync('python3', ['-c', READER, path], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`python: ${stderr}`);
  return JSON.parse(stdout) as { sha256: string; decoded: number };
}
