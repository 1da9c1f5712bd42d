import { assert, describe, it } from "@effect/vitest"
import { IdleList, type Idler } from "../../src/pool/IdleList.ts"
import { seeded } from "../support/random.ts"

class Item implements Idler<Item> {
  longerIdle: Item | null = null
  shorterIdle: Item | null = null
}

const contents = (list: IdleList<Item>): ReadonlyArray<Item> => {
  const items: Array<Item> = []
  for (let item = list.longest; item !== null; item = item.shorterIdle) items.push(item)
  return items
}

describe("a list of what is idle", () => {
  it("has in order of their coming those that came and have not gone, whatever came and went", () => {
    const list = new IdleList<Item>()
    const expected = new Set<Item>()
    const items = Array.from({ length: 8 }, () => new Item())
    const random = seeded(1)
    for (let step = 0; step < 5000; step++) {
      const item = random.pick(items)
      if (expected.delete(item)) list.remove(item)
      else {
        expected.add(item)
        list.add(item)
      }
      assert.deepStrictEqual(contents(list), [...expected])
    }
  })

  it("holds on to nothing that has gone", () => {
    const list = new IdleList<Item>()
    const [first, second] = [new Item(), new Item()]
    list.add(first)
    list.add(second)
    list.remove(first)
    list.remove(second)
    assert.deepStrictEqual([first.shorterIdle, second.longerIdle, list.longest], [null, null, null])
  })
})
