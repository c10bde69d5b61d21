package uk.ac.manchester.tornado.api;

import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** A part of an array: an offset and a number of elements (0: the rest). */
public class DataRange {
    private final TornadoNativeArray array;
    private long offset;
    private long size;
    private boolean materialized;

    /** The whole array. */
    public DataRange(TornadoNativeArray tornadoNativeArray) {
        this.array = tornadoNativeArray;
    }

    /** Starts at this element. */
    public DataRange withOffset(long offset) {
        this.offset = offset;
        this.materialized = false;
        return this;
    }

    /** Holds this many elements; 0 means all that follow the offset. */
    public DataRange withSize(long size) {
        this.size = size;
        this.materialized = false;
        return this;
    }

    /** Byte offset of the part, the array's header included; after {@link #materialize()}. */
    public long getOffset() {
        checkMaterialized();
        return TornadoNativeArray.ARRAY_HEADER + offset * array.getElementSize();
    }

    /** Bytes of the part; after {@link #materialize()}. */
    public long getPartialSize() {
        checkMaterialized();
        return (size == 0 ? array.getSize() - offset : size) * array.getElementSize();
    }

    private void checkMaterialized() {
        if (!materialized) {
            throw new TornadoRuntimeException("call materialize() before a range's offset or size is asked for");
        }
    }

    /** Checks the part against the array. */
    public void materialize() {
        if (offset < 0 || size < 0 || offset > array.getSize() - size) {
            throw new TornadoRuntimeException("range: expected a part of [0, " + array.getSize() + "), got offset "
                    + offset + " and size " + size);
        }
        materialized = true;
    }

    public TornadoNativeArray getArray() {
        return array;
    }
}
