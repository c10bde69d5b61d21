package uk.ac.manchester.tornado.api.interpreter;

import java.util.Arrays;

/**
 * A work-item's position in its kernel while it waits, and the kernel's variables there; called by {@link Resumable}
 * code.
 */
public final class Frame {
    private int barrier;
    private long[] numbers = {};
    private Object[] objects = {};

    Frame() {}

    /** The frame of the work-item that this thread runs. */
    public static Frame current() {
        return WorkItem.current().frame;
    }

    boolean waits() {
        return barrier != 0;
    }

    /** The barrier from which to continue, counted from 1; 0 for the kernel's beginning. */
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
