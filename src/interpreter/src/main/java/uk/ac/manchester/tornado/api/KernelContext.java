package uk.ac.manchester.tornado.api;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.lang.reflect.Array;
import uk.ac.manchester.tornado.api.enums.MMAShape;
import uk.ac.manchester.tornado.api.interpreter.CheckedMemory;
import uk.ac.manchester.tornado.api.interpreter.ElementIndexException;
import uk.ac.manchester.tornado.api.interpreter.WorkItem;
import uk.ac.manchester.tornado.api.types.HalfFloat;
import uk.ac.manchester.tornado.api.types.arrays.ByteArray;
import uk.ac.manchester.tornado.api.types.arrays.DoubleArray;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.LongArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A work-item's view of its launch: its indices, the memory that it shares with its work-group, and collective
 * operations. A context that a caller makes is a placeholder for the work-item's own among a task's arguments; used
 * outside a task it is a work-group of one work-item, without a warp.
 */
public class KernelContext {
    private static final VarHandle INT = ValueLayout.JAVA_INT.varHandle();
    private static final VarHandle LONG = ValueLayout.JAVA_LONG.varHandle();

    /** Index among all work-items, per dimension. */
    public final Integer globalIdx;

    public final Integer globalIdy;
    public final Integer globalIdz;
    /** Index of the work-group, per dimension. */
    public final Integer groupIdx;

    public final Integer groupIdy;
    public final Integer groupIdz;
    /** Index within the work-group, per dimension. */
    public final Integer localIdx;

    public final Integer localIdy;
    public final Integer localIdz;
    /** The number of work-items, per dimension. */
    public final Integer globalGroupSizeX;

    public final Integer globalGroupSizeY;
    public final Integer globalGroupSizeZ;
    /** The number of work-items per work-group, per dimension. */
    public final Integer localGroupSizeX;

    public final Integer localGroupSizeY;
    public final Integer localGroupSizeZ;

    private final WorkItem item;

    public KernelContext() {
        item = null;
        globalIdx = globalIdy = globalIdz = 0;
        groupIdx = groupIdy = groupIdz = 0;
        localIdx = localIdy = localIdz = 0;
        globalGroupSizeX = globalGroupSizeY = globalGroupSizeZ = 0;
        localGroupSizeX = localGroupSizeY = localGroupSizeZ = 0;
    }

    KernelContext(WorkItem item) {
        this.item = item;
        globalIdx = item.globalId(0);
        globalIdy = item.globalId(1);
        globalIdz = item.globalId(2);
        groupIdx = item.groupId(0);
        groupIdy = item.groupId(1);
        groupIdz = item.groupId(2);
        localIdx = item.localId(0);
        localIdy = item.localId(1);
        localIdz = item.localId(2);
        globalGroupSizeX = item.globalSize(0);
        globalGroupSizeY = item.globalSize(1);
        globalGroupSizeZ = item.globalSize(2);
        localGroupSizeX = item.localSize(0);
        localGroupSizeY = item.localSize(1);
        localGroupSizeZ = item.localSize(2);
    }

    private WorkItem warpMember() {
        if (item == null) {
            throw new IllegalStateException("a context outside of a task has no warp");
        }
        return item;
    }

    /** Waits until all work-items of the work-group have arrived; their earlier writes are visible afterwards. */
    public void localBarrier() {
        if (item != null) {
            item.barrier();
        }
    }

    /**
     * The same as {@link #localBarrier()}: it orders local and global memory within the work-group, and nothing between
     * work-groups.
     */
    public void globalBarrier() {
        localBarrier();
    }

    private Object local(Class<?> component, int size) {
        return item == null ? Array.newInstance(component, size) : item.local(component, size);
    }

    /**
     * An array that the work-items of a work-group share; its size must be a constant. Elements that were never written
     * have no value.
     */
    public int[] allocateIntLocalArray(int size) {
        return (int[]) local(int.class, size);
    }

    /** See {@link #allocateIntLocalArray}. */
    public byte[] allocateByteLocalArray(int size) {
        return (byte[]) local(byte.class, size);
    }

    /** See {@link #allocateIntLocalArray}. */
    public HalfFloat[] allocateHalfFloatLocalArray(int size) {
        return (HalfFloat[]) local(HalfFloat.class, size);
    }

    /** See {@link #allocateIntLocalArray}. */
    public long[] allocateLongLocalArray(int size) {
        return (long[]) local(long.class, size);
    }

    /** See {@link #allocateIntLocalArray}. */
    public float[] allocateFloatLocalArray(int size) {
        return (float[]) local(float.class, size);
    }

    /** See {@link #allocateIntLocalArray}. */
    public double[] allocateDoubleLocalArray(int size) {
        return (double[]) local(double.class, size);
    }

    /** The sum of the warp's values, added as shuffles down by 16, 8, 4, 2, 1 do. */
    public float simdSum(float val) {
        return warpMember().sum(val);
    }

    /** The value of the lane {@code delta} higher; its own value if there is none. */
    public float simdShuffleDown(float val, int delta) {
        return warpMember().shuffleDown(val, delta);
    }

    /** The value of the warp's first lane. */
    public float simdBroadcastFirst(float val) {
        return warpMember().broadcastFirst(val);
    }

    private MemorySegment checked(TornadoNativeArray array, int index) {
        if (index < 0 || index >= array.getSize()) {
            throw new ElementIndexException(array, index, array.getSize());
        }
        if (item != null) {
            item.updates(array, index);
        }
        return array.getSegmentWithHeader();
    }

    public void atomicAdd(IntArray array, int index, int val) {
        var _ = (int) INT.getAndAdd(checked(array, index), TornadoNativeArray.ARRAY_HEADER + index * 4L, val);
    }

    /** Adds to an element of local memory. */
    public void atomicAdd(int[] array, int index, int val) {
        CheckedMemory.store(array, index, CheckedMemory.load(array, index) + val);
        if (item != null) {
            item.updates(array, index);
        }
    }

    public void atomicAdd(LongArray array, int index, long val) {
        var _ = (long) LONG.getAndAdd(checked(array, index), TornadoNativeArray.ARRAY_HEADER + index * 8L, val);
    }

    public void atomicAdd(FloatArray array, int index, float val) {
        MemorySegment segment = checked(array, index);
        long at = TornadoNativeArray.ARRAY_HEADER + index * 4L;
        int old;
        do {
            old = (int) INT.getVolatile(segment, at);
        } while (!INT.compareAndSet(segment, at, old, Float.floatToRawIntBits(Float.intBitsToFloat(old) + val)));
    }

    public void atomicAdd(DoubleArray array, int index, double val) {
        MemorySegment segment = checked(array, index);
        long at = TornadoNativeArray.ARRAY_HEADER + index * 8L;
        long old;
        do {
            old = (long) LONG.getVolatile(segment, at);
        } while (!LONG.compareAndSet(segment, at, old, Double.doubleToRawLongBits(Double.longBitsToDouble(old) + val)));
    }

    /** A lane's four values of a 16x8 int32 tile, all the same. */
    public int[] mmaFragmentInt(int initValue) {
        return new int[] {initValue, initValue, initValue, initValue};
    }

    /**
     * A lane's part of a 16x32 int8 tile in local memory: 16 rows of tileK / 4 ints, four int8 to an int, the lowest
     * byte first.
     */
    public byte[] mmaLoadAInt8(int[] aTile, int tileK) {
        return mmaLoadAInt8(aTile, tileK, 0);
    }

    /** The same for a tile that begins at a byte offset in the array; in TornadoVM from 7.0 on. */
    public byte[] mmaLoadAInt8(int[] aTile, int tileK, int byteOffset) {
        return loadA(aTile, tileK / 4, byteOffset);
    }

    /**
     * A lane's part of a 32x8 int8 tile in local memory: int 4i + j holds (k, n), (k + 1, n), (k, n + 1), (k + 1, n +
     * 1), the lowest byte first, for k = 2i and n = 2j.
     */
    public byte[] mmaLoadBInt8(int[] bTile, int tileK) {
        return mmaLoadBInt8(bTile, tileK, 0);
    }

    /** The same for a tile that begins at a byte offset in the array; in TornadoVM from 7.0 on. */
    public byte[] mmaLoadBInt8(int[] bTile, int tileK, int byteOffset) {
        return loadB(bTile, byteOffset);
    }

    /** The A fragment of m16n8k16, which moves the same bits as that of m16n8k32: 16 rows of wmmaK / 2 ints. */
    public HalfFloat[] mmaLoadA(int[] aTile, int wmmaK, int byteOffset) {
        return halves(loadA(aTile, wmmaK / 2, byteOffset));
    }

    /** The B fragment of m16n8k16, which moves the same bits as that of m16n8k32. */
    public HalfFloat[] mmaLoadB(int[] bTile, int wmmaK, int byteOffset) {
        return halves(loadB(bTile, byteOffset));
    }

    /** See {@link #mmaLoadA(int[], int, int)}. */
    public HalfFloat[] mmaLoadA(int[] aTile, int wmmaK) {
        return mmaLoadA(aTile, wmmaK, 0);
    }

    /** See {@link #mmaLoadB(int[], int, int)}. */
    public HalfFloat[] mmaLoadB(int[] bTile, int wmmaK) {
        return mmaLoadB(bTile, wmmaK, 0);
    }

    /** Of four 8x8 matrices lane 8i + r names row r of the i-th, and gets an int of row lane / 4 of each. */
    private byte[] loadA(int[] tile, int rowInts, int byteOffset) {
        int lane = lane();
        int[] offsets = warpMember().offsets(byteOffset);
        byte[] fragment = new byte[16];
        for (int i = 0; i < 4; i++) {
            int row = lane / 4;
            int first = intOffset(offsets[8 * i + row]) + (i % 2 * 8 + row) * rowInts + i / 2 * 4;
            put(fragment, 4 * i, tile, first + lane % 4);
        }
        return fragment;
    }

    private void put(byte[] fragment, int at, int[] tile, int index) {
        int word = warpRead(tile, index);
        fragment[at] = (byte) word;
        fragment[at + 1] = (byte) (word >> 8);
        fragment[at + 2] = (byte) (word >> 16);
        fragment[at + 3] = (byte) (word >> 24);
    }

    /** The same of two matrices, transposed: lane / 4 is a column, of which a lane gets two rows of each. */
    private byte[] loadB(int[] tile, int byteOffset) {
        int[] offsets = warpMember().offsets(byteOffset);
        int column = lane() / 4;
        int shift = column % 2 * 16;
        byte[] fragment = new byte[8];
        for (int i = 0; i < 4; i++) {
            // words of k pairs 2t, 2t + 1, 2t + 8, 2t + 9
            int row = lane() % 4 * 2 + i / 2 * 8 + i % 2;
            int word = warpRead(tile, intOffset(offsets[row]) + row * 4 + column / 2) >> shift;
            fragment[2 * i] = (byte) word;
            fragment[2 * i + 1] = (byte) (word >> 8);
        }
        return fragment;
    }

    private int warpRead(int[] tile, int index) {
        int word = CheckedMemory.load(tile, index);
        item.reads(tile, index);
        return word;
    }

    private static int intOffset(int byteOffset) {
        if (byteOffset % 16 != 0) {
            throw new IllegalArgumentException(
                    "byteOffset: expected a multiple of 16 (a row of ldmatrix), got " + byteOffset);
        }
        return byteOffset / 4;
    }

    private int lane() {
        return warpMember().lane();
    }

    private static HalfFloat[] halves(byte[] bytes) {
        HalfFloat[] halves = new HalfFloat[bytes.length / 2];
        for (int i = 0; i < halves.length; i++) {
            halves[i] = new HalfFloat((short) ((bytes[2 * i] & 0xff) | (bytes[2 * i + 1] << 8)));
        }
        return halves;
    }

    /** The fragment of c plus the product of the tiles a and b; sums wrap on overflow. */
    public int[] mmaInt8(byte[] fragA, byte[] fragB, int[] fragC, MMAShape shape) {
        if (shape != MMAShape.M16N8K32) {
            throw new IllegalArgumentException("shape: expected M16N8K32, got " + shape);
        }
        return warpMember().mma(fragA, fragB, fragC);
    }

    /** A lane's four values of a 16x8 float tile, all the same. */
    public float[] mmaFragment(float v) {
        return new float[] {v, v, v, v};
    }

    /** The fragment of c plus the product of the tiles a and b. */
    public float[] mma(HalfFloat[] fragA, HalfFloat[] fragB, float[] fragC, MMAShape mmaShape) {
        if (mmaShape != MMAShape.M16N8K16) {
            throw new IllegalArgumentException("shape: expected M16N8K16, got " + mmaShape);
        }
        return warpMember().mma(fragA, fragB, fragC);
    }

    /** Stores a 16x8 tile at (tileRow, tileCol) of a row-major matrix of dimN columns. */
    public void mmaStore(float[] fragD, FloatArray c, int tileRow, int tileCol, int dimN) {
        int at = (tileRow + lane() / 4) * dimN + tileCol + lane() % 4 * 2;
        store(c, at, fragD[0]);
        store(c, at + 1, fragD[1]);
        store(c, at + 8 * dimN, fragD[2]);
        store(c, at + 8 * dimN + 1, fragD[3]);
    }

    private void store(FloatArray out, int index, float value) {
        out.set(index, value);
        item.writes(out, index);
    }

    /** Stores a 16x8 tile at (row, col) of a row-major matrix of stride columns. */
    public void mmaStoreInt(int[] fragD, IntArray out, int row, int col, int stride) {
        int at = (row + lane() / 4) * stride + col + lane() % 4 * 2;
        store(out, at, fragD[0]);
        store(out, at + 1, fragD[1]);
        store(out, at + 8 * stride, fragD[2]);
        store(out, at + 8 * stride + 1, fragD[3]);
    }

    private void store(IntArray out, int index, int value) {
        out.set(index, value);
        item.writes(out, index);
    }

    /**
     * Copies four bytes of src, from srcIndex (a multiple of 4), to an int of local memory. The int has the value after
     * the wait for the group of copies, and none before.
     */
    public void asyncCopyToLocal(int[] dstTile, int dstIndex, ByteArray src, int srcIndex) {
        if (srcIndex % 4 != 0) {
            throw new IllegalArgumentException("srcIndex: expected a multiple of 4, got " + srcIndex);
        }
        int value = (src.get(srcIndex) & 0xff)
                | ((src.get(srcIndex + 1) & 0xff) << 8)
                | ((src.get(srcIndex + 2) & 0xff) << 16)
                | (src.get(srcIndex + 3) << 24);
        if (item == null) {
            dstTile[dstIndex] = value;
        } else {
            for (int i = 0; i < 4; i++) {
                item.reads(src, srcIndex + i);
            }
            item.copyAsync(dstTile, dstIndex, value);
        }
    }

    /** Ends the group of copies issued since the last commit. */
    public void asyncCopyCommit() {
        if (item != null) {
            item.commitCopies();
        }
    }

    /** Waits until at most that many of this work-item's committed groups of copies are still pending. */
    public void asyncCopyWaitGroup(int groups) {
        if (item != null) {
            item.awaitCopies(groups);
        }
    }
}
