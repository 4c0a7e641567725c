// `read.js FOLDER...`: what read.py does, by hyparquet. Runs in the folder where it is installed.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'

const plain = (_, value) =>
  typeof value === 'bigint' ? Number(value) : ArrayBuffer.isView(value) ? [...value] : value

for (const folder of process.argv.slice(2)) {
  const rows = []
  for (const name of readdirSync(folder).filter(name => name.endsWith('.parquet')).sort()) {
    const bytes = readFileSync(join(folder, name))
    const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
    rows.push(...await parquetReadObjects({ file, compressors }))
  }
  console.log(JSON.stringify(rows, plain))
}
