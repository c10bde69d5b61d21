package uk.ac.manchester.tornado.api.interpreter;

import java.util.Arrays;
import uk.ac.manchester.tornado.api.types.HalfFloat;

/**
 * Accesses the elements of Java arrays for a kernel's checked copy. Local memory starts with a pattern; only a load
 * that finds the pattern looks up whether the element was stored. For a work-item's own arrays only bounds are checked.
 */
public final class CheckedMemory {
    private static final byte BYTE = (byte) 0xad;
    private static final short SHORT = (short) 0xa5ad;
    private static final char CHAR = 0xa5ad;
    private static final int INT = 0xa5f1dead;
    private static final long LONG = 0xa5f1dead_5a0e2b1dL;
    private static final int FLOAT = 0x7fc0dead;
    private static final long DOUBLE = 0x7ff8dead_a5f1deadL;

    private CheckedMemory() {}

    /** Fills an array with the pattern. */
    static void poison(Object array) {
        switch (array) {
            case byte[] a -> Arrays.fill(a, BYTE);
            case short[] a -> Arrays.fill(a, SHORT);
            case char[] a -> Arrays.fill(a, CHAR);
            case int[] a -> Arrays.fill(a, INT);
            case long[] a -> Arrays.fill(a, LONG);
            case float[] a -> Arrays.fill(a, Float.intBitsToFloat(FLOAT));
            case double[] a -> Arrays.fill(a, Double.longBitsToDouble(DOUBLE));
            default -> {} // object arrays contain null
        }
    }

    /** Makes an element unwritten again. */
    static void poison(int[] array, int index) {
        array[index] = INT;
        LocalArray local = local(array);
        if (local != null) {
            local.forget(index);
        }
    }

    private static LocalArray local(Object array) {
        WorkItem item = WorkItem.current();
        return item == null ? null : item.group.find(array);
    }

    static void checkIndex(Object array, int length, int index) {
        if (index < 0 || index >= length) {
            throw new ElementIndexException(array, index, length);
        }
    }

    /** Called if a load finds the pattern. */
    private static void checkStored(Object array, int index) {
        LocalArray local = local(array);
        if (local != null && !local.isStored(index)) {
            throw new Fault("element " + index + " of " + local.name() + " is read, and no work-item wrote it");
        }
    }

    /** Called if a stored value equals the pattern. */
    private static void noteStored(Object array, int index) {
        LocalArray local = local(array);
        if (local != null) {
            local.store(index);
        }
    }

    /** Names a local array after the variable it is stored in. */
    public static void name(Object array, String name) {
        WorkItem.current().group.name(array, name);
    }

    /** A cast of a fragment to byte[] as on a device: the same bits. */
    public static byte[] bytes(Object fragment) {
        if (!(fragment instanceof HalfFloat[] halves)) {
            return (byte[]) fragment;
        }
        byte[] bytes = new byte[2 * halves.length];
        for (int i = 0; i < halves.length; i++) {
            short bits = halves[i].getHalfFloatValue();
            bytes[2 * i] = (byte) bits;
            bytes[2 * i + 1] = (byte) (bits >> 8);
        }
        return bytes;
    }

    public static byte load(Object array, int index) {
        if (array instanceof boolean[] booleans) {
            checkIndex(array, booleans.length, index);
            return (byte) (booleans[index] ? 1 : 0);
        }
        byte[] bytes = (byte[]) array;
        checkIndex(array, bytes.length, index);
        byte value = bytes[index];
        if (value == BYTE) {
            checkStored(array, index);
        }
        return value;
    }

    public static void store(Object array, int index, byte value) {
        if (array instanceof boolean[] booleans) {
            checkIndex(array, booleans.length, index);
            booleans[index] = (value & 1) != 0;
            return;
        }
        byte[] bytes = (byte[]) array;
        checkIndex(array, bytes.length, index);
        bytes[index] = value;
        if (value == BYTE) {
            noteStored(array, index);
        }
    }

    public static short load(short[] array, int index) {
        checkIndex(array, array.length, index);
        short value = array[index];
        if (value == SHORT) {
            checkStored(array, index);
        }
        return value;
    }

    public static void store(short[] array, int index, short value) {
        checkIndex(array, array.length, index);
        array[index] = value;
        if (value == SHORT) {
            noteStored(array, index);
        }
    }

    public static char load(char[] array, int index) {
        checkIndex(array, array.length, index);
        char value = array[index];
        if (value == CHAR) {
            checkStored(array, index);
        }
        return value;
    }

    public static void store(char[] array, int index, char value) {
        checkIndex(array, array.length, index);
        array[index] = value;
        if (value == CHAR) {
            noteStored(array, index);
        }
    }

    public static int load(int[] array, int index) {
        checkIndex(array, array.length, index);
        int value = array[index];
        if (value == INT) {
            checkStored(array, index);
        }
        return value;
    }

    public static void store(int[] array, int index, int value) {
        checkIndex(array, array.length, index);
        array[index] = value;
        if (value == INT) {
            noteStored(array, index);
        }
    }

    public static long load(long[] array, int index) {
        checkIndex(array, array.length, index);
        long value = array[index];
        if (value == LONG) {
            checkStored(array, index);
        }
        return value;
    }

    public static void store(long[] array, int index, long value) {
        checkIndex(array, array.length, index);
        array[index] = value;
        if (value == LONG) {
            noteStored(array, index);
        }
    }

    public static float load(float[] array, int index) {
        checkIndex(array, array.length, index);
        float value = array[index];
        if (Float.floatToRawIntBits(value) == FLOAT) {
            checkStored(array, index);
        }
        return value;
    }

    public static void store(float[] array, int index, float value) {
        checkIndex(array, array.length, index);
        array[index] = value;
        if (Float.floatToRawIntBits(value) == FLOAT) {
            noteStored(array, index);
        }
    }

    public static double load(double[] array, int index) {
        checkIndex(array, array.length, index);
        double value = array[index];
        if (Double.doubleToRawLongBits(value) == DOUBLE) {
            checkStored(array, index);
        }
        return value;
    }

    public static void store(double[] array, int index, double value) {
        checkIndex(array, array.length, index);
        array[index] = value;
        if (Double.doubleToRawLongBits(value) == DOUBLE) {
            noteStored(array, index);
        }
    }
}
