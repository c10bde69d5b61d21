package uk.ac.manchester.tornado.api.interpreter;

import java.util.Arrays;

/** Where a work-item waits in its kernel, and the kernel's variables there; what {@link Resumable} code calls. */
public final class Frame {
    private int barrier;
    private long[] numbers = {};
    private Object[] objects = {};

    Frame() {}

    /** That of the work-item this thread runs. */
    public static Frame current() {
        return WorkItem.current().frame;
    }

    boolean waits() {
        return barrier != 0;
    }

    /** The barrier to go on from, counted from 1, or 0: from the kernel's beginning. */
    public int resume() {
        int from = barrier;
        barrier = 0;
        return from;
    }

    public void stop(int at) {
        barrier = at;
    }

    public void put(int index, int value) {
        put(index, (long) value);
    }

    public void put(int index, float value) {
        put(index, (long) Float.floatToRawIntBits(value));
    }

    public void put(int index, double value) {
        put(index, Double.doubleToRawLongBits(value));
    }

    public void put(int index, long value) {
        if (index >= numbers.length) {
            numbers = Arrays.copyOf(numbers, 2 * index + 8);
        }
        numbers[index] = value;
    }

    public void put(int index, Object value) {
        if (index >= objects.length) {
            objects = Arrays.copyOf(objects, 2 * index + 8);
        }
        objects[index] = value;
    }

    public int getInt(int index) {
        return (int) numbers[index];
    }

    public float getFloat(int index) {
        return Float.intBitsToFloat((int) numbers[index]);
    }

    public double getDouble(int index) {
        return Double.longBitsToDouble(numbers[index]);
    }

    public long getLong(int index) {
        return numbers[index];
    }

    public Object getObject(int index) {
        return objects[index];
    }
}
