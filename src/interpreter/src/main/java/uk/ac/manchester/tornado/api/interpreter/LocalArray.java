package uk.ac.manchester.tornado.api.interpreter;

import java.util.BitSet;

/** An array in a group's local memory. */
final class LocalArray {
    final Object array;
    final int length;
    /** Elements whose stored value equals the pattern of unwritten memory. */
    private final BitSet stored = new BitSet();

    private String name;

    LocalArray(Object array, int length, String name) {
        this.array = array;
        this.length = length;
        this.name = name;
        CheckedMemory.poison(array);
    }

    String name() {
        return name;
    }

    void name(String variable) {
        name = variable;
    }

    void store(int index) {
        stored.set(index);
    }

    void forget(int index) {
        stored.clear(index);
    }

    boolean isStored(int index) {
        return stored.get(index);
    }
}
