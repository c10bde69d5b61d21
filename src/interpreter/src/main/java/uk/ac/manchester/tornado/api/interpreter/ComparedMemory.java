package uk.ac.manchester.tornado.api.interpreter;

import uk.ac.manchester.tornado.api.types.HalfFloat;
import uk.ac.manchester.tornado.api.types.arrays.ByteArray;
import uk.ac.manchester.tornado.api.types.arrays.CharArray;
import uk.ac.manchester.tornado.api.types.arrays.DoubleArray;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.HalfFloatArray;
import uk.ac.manchester.tornado.api.types.arrays.Int8Array;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.LongArray;
import uk.ac.manchester.tornado.api.types.arrays.ShortArray;

/**
 * Checks like {@link CheckedMemory}, and also compares every access to shared memory with earlier ones. A method's copy
 * looks its work-item up once; each of its accesses has a number, its site.
 */
public final class ComparedMemory {
    private ComparedMemory() {}

    public static void name(Object array, String name) {
        CheckedMemory.name(array, name);
    }

    public static byte[] bytes(Object fragment) {
        return CheckedMemory.bytes(fragment);
    }

    public static byte load(Object array, int index, WorkItem item, int site) {
        byte value = CheckedMemory.load(array, index);
        item.reads(array, index, site);
        return value;
    }

    public static void store(Object array, int index, byte value, WorkItem item, int site) {
        CheckedMemory.store(array, index, value);
        item.writes(array, index, site);
    }

    public static short load(short[] array, int index, WorkItem item, int site) {
        short value = CheckedMemory.load(array, index);
        item.reads(array, index, site);
        return value;
    }

    public static void store(short[] array, int index, short value, WorkItem item, int site) {
        CheckedMemory.store(array, index, value);
        item.writes(array, index, site);
    }

    public static char load(char[] array, int index, WorkItem item, int site) {
        char value = CheckedMemory.load(array, index);
        item.reads(array, index, site);
        return value;
    }

    public static void store(char[] array, int index, char value, WorkItem item, int site) {
        CheckedMemory.store(array, index, value);
        item.writes(array, index, site);
    }

    public static int load(int[] array, int index, WorkItem item, int site) {
        int value = CheckedMemory.load(array, index);
        item.reads(array, index, site);
        return value;
    }

    public static void store(int[] array, int index, int value, WorkItem item, int site) {
        CheckedMemory.store(array, index, value);
        item.writes(array, index, site);
    }

    public static long load(long[] array, int index, WorkItem item, int site) {
        long value = CheckedMemory.load(array, index);
        item.reads(array, index, site);
        return value;
    }

    public static void store(long[] array, int index, long value, WorkItem item, int site) {
        CheckedMemory.store(array, index, value);
        item.writes(array, index, site);
    }

    public static float load(float[] array, int index, WorkItem item, int site) {
        float value = CheckedMemory.load(array, index);
        item.reads(array, index, site);
        return value;
    }

    public static void store(float[] array, int index, float value, WorkItem item, int site) {
        CheckedMemory.store(array, index, value);
        item.writes(array, index, site);
    }

    public static double load(double[] array, int index, WorkItem item, int site) {
        double value = CheckedMemory.load(array, index);
        item.reads(array, index, site);
        return value;
    }

    public static void store(double[] array, int index, double value, WorkItem item, int site) {
        CheckedMemory.store(array, index, value);
        item.writes(array, index, site);
    }

    public static byte get(ByteArray array, int index, WorkItem item, int site) {
        byte value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(ByteArray array, int index, byte value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static char get(CharArray array, int index, WorkItem item, int site) {
        char value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(CharArray array, int index, char value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static double get(DoubleArray array, int index, WorkItem item, int site) {
        double value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(DoubleArray array, int index, double value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static float get(FloatArray array, int index, WorkItem item, int site) {
        float value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(FloatArray array, int index, float value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static HalfFloat get(HalfFloatArray array, int index, WorkItem item, int site) {
        HalfFloat value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(HalfFloatArray array, int index, HalfFloat value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static byte get(Int8Array array, int index, WorkItem item, int site) {
        byte value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(Int8Array array, int index, byte value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static int get(IntArray array, int index, WorkItem item, int site) {
        int value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(IntArray array, int index, int value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static long get(LongArray array, int index, WorkItem item, int site) {
        long value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(LongArray array, int index, long value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }

    public static short get(ShortArray array, int index, WorkItem item, int site) {
        short value = array.get(index);
        item.reads(array, index, site);
        return value;
    }

    public static void set(ShortArray array, int index, short value, WorkItem item, int site) {
        array.set(index, value);
        item.writes(array, index, site);
    }
}
