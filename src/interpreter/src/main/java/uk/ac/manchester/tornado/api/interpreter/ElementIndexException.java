package uk.ac.manchester.tornado.api.interpreter;

/** An index outside of an array. */
public final class ElementIndexException extends IndexOutOfBoundsException {
    private static final long serialVersionUID = 1;

    final transient Object array;
    final int index;
    final int length;

    public ElementIndexException(Object array, int index, int length) {
        super("index " + index + " is out of bounds for length " + length);
        this.array = array;
        this.index = index;
        this.length = length;
    }
}
