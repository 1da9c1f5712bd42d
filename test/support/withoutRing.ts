/** For the tests that run once more as where the kernel has no io_uring. */
import { forbidRing } from "../../src/net/KernelSockets.ts"

forbidRing("not in these tests")
