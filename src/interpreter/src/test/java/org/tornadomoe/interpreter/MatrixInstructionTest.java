package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static uk.ac.manchester.tornado.api.enums.DataTransferMode.EVERY_EXECUTION;

import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.enums.MMAShape;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.ByteArray;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class MatrixInstructionTest {
    /** One warp for 16 rows and 8 columns: a is [m, k], b is [k, n], both row-major; c = a · b. */
    static void multiply(KernelContext ctx, ByteArray a, ByteArray b, IntArray c, int n, int k) {
        int[] aTile = ctx.allocateIntLocalArray(128);
        int[] bTile = ctx.allocateIntLocalArray(64);
        int lane = ctx.localIdx;
        int row = ctx.groupIdx / (n / 8) * 16;
        int column = ctx.groupIdx % (n / 8) * 8;
        int[] sum = ctx.mmaFragmentInt(0);
        for (int k0 = 0; k0 < k; k0 += 32) {
            for (int i = lane; i < 128; i += 32) {
                int at = (row + i / 8) * k + k0 + i % 8 * 4;
                aTile[i] = (a.get(at) & 0xff)
                        | ((a.get(at + 1) & 0xff) << 8)
                        | ((a.get(at + 2) & 0xff) << 16)
                        | (a.get(at + 3) << 24);
            }
            for (int i = lane; i < 64; i += 32) {
                int at = (k0 + i / 4 * 2) * n + column + i % 4 * 2;
                bTile[i] = (b.get(at) & 0xff)
                        | ((b.get(at + n) & 0xff) << 8)
                        | ((b.get(at + 1) & 0xff) << 16)
                        | (b.get(at + n + 1) << 24);
            }
            ctx.localBarrier();
            sum = ctx.mmaInt8(ctx.mmaLoadAInt8(aTile, 32), ctx.mmaLoadBInt8(bTile, 32), sum, MMAShape.M16N8K32);
            ctx.localBarrier();
        }
        ctx.mmaStoreInt(sum, c, row, column, n);
    }

    @ParameterizedTest
    @CsvSource({"16,8,32", "16,8,160", "48,24,64", "32,40,96"})
    void productIsExact(int m, int n, int k) throws Exception {
        ByteArray a = random(m * k, 1);
        ByteArray b = random(k * n, 2);
        IntArray c = new IntArray(m * n);
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, a, b)
                        .task("t", MatrixInstructionTest::multiply, new KernelContext(), a, b, c, n, k)
                        .transferToHost(EVERY_EXECUTION, c),
                m / 16 * (n / 8) * 32,
                32);
        assertThat(c.toHeapArray()).isEqualTo(product(a, b, m, n, k));
    }

    /** Two warps share a block's tiles, copied in asynchronously; the half-precision loads move the same bits. */
    static void shared(KernelContext ctx, ByteArray aTiles, ByteArray bTiles, IntArray c, int steps) {
        int[] tiles = ctx.allocateIntLocalArray(2 * (256 + 64));
        int item = ctx.localIdx;
        int warp = item / 32;
        int[] sum = ctx.mmaFragmentInt(0);
        for (int i = item; i < 320; i += 64) {
            int from = i < 256 ? i : i - 256;
            if (i < 256) {
                ctx.asyncCopyToLocal(tiles, i, aTiles, from * 4);
            } else {
                ctx.asyncCopyToLocal(tiles, i, bTiles, from * 4);
            }
        }
        ctx.asyncCopyCommit();
        for (int step = 0; step < steps; step++) {
            int next = Math.min(step + 1, steps - 1);
            int stage = (step + 1) % 2 * 320;
            for (int i = item; i < 320; i += 64) {
                if (i < 256) {
                    ctx.asyncCopyToLocal(tiles, stage + i, aTiles, (next * 256 + i) * 4);
                } else {
                    ctx.asyncCopyToLocal(tiles, stage + i, bTiles, (next * 64 + i - 256) * 4);
                }
            }
            ctx.asyncCopyCommit();
            ctx.asyncCopyWaitGroup(1);
            ctx.localBarrier();
            int base = step % 2 * 320 * 4;
            byte[] fragA = (byte[]) (Object) ctx.mmaLoadA(tiles, 16, base + warp * 512);
            byte[] fragB = (byte[]) (Object) ctx.mmaLoadB(tiles, 16, base + 1024);
            sum = ctx.mmaInt8(fragA, fragB, sum, MMAShape.M16N8K32);
            ctx.localBarrier();
        }
        ctx.mmaStoreInt(sum, c, warp * 16, 0, 8);
    }

    @Test
    void tilesOfABlockAtByteOffsets() throws Exception {
        int steps = 5;
        int k = 32 * steps;
        ByteArray a = random(32 * k, 3);
        ByteArray b = random(k * 8, 4);
        ByteArray aTiles = new ByteArray(32 * k);
        ByteArray bTiles = new ByteArray(8 * k);
        for (int i = 0; i < 32 * k; i++) {
            int row = i / k;
            int column = i % k;
            aTiles.set(column / 32 * 1024 + row * 32 + column % 32, a.get(i));
        }
        for (int i = 0; i < 8 * k; i++) {
            int row = i / 8;
            int column = i % 8;
            int word = row % 32 / 2 * 4 + column / 2;
            bTiles.set(row / 32 * 256 + word * 4 + row % 2 + column % 2 * 2, b.get(i));
        }
        IntArray c = new IntArray(32 * 8);
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, aTiles, bTiles)
                        .task("t", MatrixInstructionTest::shared, new KernelContext(), aTiles, bTiles, c, steps)
                        .transferToHost(EVERY_EXECUTION, c),
                64,
                64);
        assertThat(c.toHeapArray()).isEqualTo(product(a, b, 32, 8, k));
    }

    /**
     * The second of two tiles by the int8 loads' own offsets, and a lane's sums read where they are: both from
     * TornadoVM 7.0 on.
     */
    static void secondTile(KernelContext ctx, IntArray aTiles, IntArray bTiles, IntArray stored, IntArray read) {
        int[] a = ctx.allocateIntLocalArray(2 * 128);
        int[] b = ctx.allocateIntLocalArray(2 * 64);
        int lane = ctx.localIdx;
        for (int i = lane; i < 256; i += 32) {
            a[i] = aTiles.get(i);
        }
        for (int i = lane; i < 128; i += 32) {
            b[i] = bTiles.get(i);
        }
        ctx.localBarrier();
        int[] sum = ctx.mmaInt8(
                ctx.mmaLoadAInt8(a, 32, 512), ctx.mmaLoadBInt8(b, 32, 256), ctx.mmaFragmentInt(0), MMAShape.M16N8K32);
        ctx.mmaStoreInt(sum, stored, 0, 0, 8);
        int at = lane / 4 * 8 + lane % 4 * 2;
        read.set(at, sum[0]);
        read.set(at + 1, sum[1]);
        read.set(at + 64, sum[2]);
        read.set(at + 65, sum[3]);
    }

    @Test
    void int8LoadsTakeOffsetsAndSumsAreRead() throws Exception {
        IntArray a = new IntArray(256);
        IntArray b = new IntArray(128);
        SplittableRandom random = new SplittableRandom(8);
        for (int i = 0; i < 256; i++) {
            a.set(i, random.nextInt());
        }
        for (int i = 0; i < 128; i++) {
            b.set(i, random.nextInt());
        }
        IntArray stored = new IntArray(128);
        IntArray read = new IntArray(128);
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, a, b)
                        .task("t", MatrixInstructionTest::secondTile, new KernelContext(), a, b, stored, read)
                        .transferToHost(EVERY_EXECUTION, stored, read),
                32,
                32);
        int[] expected = new int[128];
        for (int i = 0; i < 128; i++) {
            for (int k = 0; k < 32; k++) {
                int inA = (i / 8) * 32 + k;
                int inB = 4 * (k / 2 * 4 + i % 8 / 2) + k % 2 + i % 2 * 2;
                expected[i] += (byte) (a.get(128 + inA / 4) >> (8 * (inA % 4)))
                        * (byte) (b.get(64 + inB / 4) >> (8 * (inB % 4)));
            }
        }
        assertThat(stored.toHeapArray()).isEqualTo(expected);
        assertThat(read.toHeapArray()).isEqualTo(expected);
    }

    /**
     * c = a · b of halves, 16x16 and 16x8: of a's rows of 32 bytes the second four of every eight lie with their halves
     * swapped, and each lane names the address of the row that it stands for.
     */
    static void halves(KernelContext ctx, IntArray a, IntArray b, FloatArray c) {
        int[] aTile = ctx.allocateIntLocalArray(256);
        int[] bTile = ctx.allocateIntLocalArray(64);
        int lane = ctx.localIdx;
        for (int i = lane; i < 128; i += 32) {
            aTile[128 + (i ^ (i >> 5 & 1) * 4)] = a.get(i);
        }
        for (int i = lane; i < 64; i += 32) {
            bTile[i] = b.get(i);
        }
        ctx.localBarrier();
        int swapped = (lane >> 2 & 1) * ((lane & 16) == 0 ? 16 : -16);
        float[] sum = ctx.mma(
                ctx.mmaLoadA(aTile, 16, 512 + swapped),
                ctx.mmaLoadB(bTile, 16, 0),
                ctx.mmaFragment(0.5f),
                MMAShape.M16N8K16);
        ctx.mmaStore(sum, c, 0, 0, 8);
    }

    @Test
    void halvesAreMultipliedWhereEachLaneNamesARow() throws Exception {
        SplittableRandom random = new SplittableRandom(9);
        float[][] a = new float[16][16];
        float[][] b = new float[16][8];
        IntArray aBits = halves(random, a);
        IntArray bBits = halves(random, b);
        FloatArray c = new FloatArray(128);
        c.init(Float.NaN);
        Grids.run(
                new TaskGraph("g")
                        .transferToDevice(EVERY_EXECUTION, aBits, bBits)
                        .task("t", MatrixInstructionTest::halves, new KernelContext(), aBits, bBits, c)
                        .transferToHost(EVERY_EXECUTION, c),
                32,
                32);
        for (int i = 0; i < 128; i++) {
            float expected = 0.5f;
            for (int k = 0; k < 16; k++) {
                expected += a[i / 8][k] * b[k][i % 8];
            }
            assertThat(c.get(i)).as("sum %d", i).isEqualTo(expected);
        }
    }

    /** Multiples of an eighth, so that sums are exact, two to an int. */
    private static IntArray halves(SplittableRandom random, float[][] values) {
        int columns = values[0].length;
        IntArray bits = new IntArray(values.length * columns / 2);
        for (int i = 0; i < values.length * columns; i++) {
            float value = random.nextInt(-100, 100) / 8f;
            values[i / columns][i % columns] = value;
            int half = Float.floatToFloat16(value) & 0xffff;
            bits.set(i / 2, i % 2 == 0 ? half : bits.get(i / 2) | (half << 16));
        }
        return bits;
    }

    static void readsBeforeItLands(KernelContext ctx, ByteArray source, IntArray out) {
        int[] tile = ctx.allocateIntLocalArray(32);
        ctx.asyncCopyToLocal(tile, ctx.localIdx, source, ctx.localIdx * 4);
        ctx.asyncCopyCommit();
        ctx.asyncCopyWaitGroup(1);
        out.set(ctx.localIdx, tile[ctx.localIdx]);
    }

    @Test
    void aCopyThatWasNotWaitedFor() {
        ByteArray source = random(128, 5);
        IntArray out = new IntArray(32);
        TaskGraph graph = new TaskGraph("g")
                .transferToDevice(EVERY_EXECUTION, source)
                .task("t", MatrixInstructionTest::readsBeforeItLands, new KernelContext(), source, out);
        assertThatThrownBy(() -> Grids.run(graph, 32, 32))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("element 0 of tile is read");
    }

    static void inOneBranch(KernelContext ctx, IntArray out) {
        int[] sum = ctx.mmaFragmentInt(7);
        if (ctx.localIdx != 3) {
            sum = ctx.mmaInt8(new byte[16], new byte[8], sum, MMAShape.M16N8K32);
        }
        ctx.localBarrier();
        ctx.mmaStoreInt(sum, out, 0, 0, 8);
    }

    @Test
    void aMatrixInstructionNeedsTheWholeWarp() {
        IntArray out = new IntArray(128);
        TaskGraph graph = new TaskGraph("g").task("t", MatrixInstructionTest::inOneBranch, new KernelContext(), out);
        assertThatThrownBy(() -> Grids.run(graph, 32, 32))
                .isInstanceOf(TornadoRuntimeException.class)
                .hasMessageContaining("MMA_INT8 waits for lane 3")
                .hasMessageContaining("is at a barrier");
        assertThatThrownBy(() -> Grids.run(graph, 48, 48)).hasMessageContaining("32 work-items");
    }

    private static ByteArray random(int size, long seed) {
        byte[] bytes = new byte[size];
        new SplittableRandom(seed).nextBytes(bytes);
        return ByteArray.fromArray(bytes);
    }

    private static int[] product(ByteArray a, ByteArray b, int m, int n, int k) {
        int[] c = new int[m * n];
        for (int row = 0; row < m; row++) {
            for (int column = 0; column < n; column++) {
                for (int i = 0; i < k; i++) {
                    c[row * n + column] += a.get(row * k + i) * b.get(i * n + column);
                }
            }
        }
        return c;
    }
}
