package org.tornadomoe.tornado.cuda;

import java.util.List;
import java.util.function.IntToLongFunction;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** What {@link CudaLibrary} puts on a plan's stream: one thing of a {@link CudaTask}. */
public sealed interface CudaStep permits CudaKernel, CudaStep.Copy, CudaStep.Wait {
    String name();

    /** Of the layer's call: its first element is M. */
    IntArray header();

    /** Arrays on the device. */
    List<Object> reads();

    /** Arrays whose content before doesn't count. */
    List<Object> writes();

    /** Arrays that are read and written. */
    List<Object> updates();

    /**
     * As much of an array as M tokens have, between here and the device; TornadoVM's own transfers are of whole arrays.
     *
     * @param toDevice or from there
     * @param elements of four bytes for M tokens, asked for in every call; 0 for no copy
     */
    record Copy(String name, IntArray header, TornadoNativeArray array, boolean toDevice, IntToLongFunction elements)
            implements CudaStep {
        /** Bytes from where the array begins to a token's; 0 if it isn't copied by tokens. */
        public long bytesBefore(int token) {
            return 4 * (elements.applyAsLong(token) - elements.applyAsLong(0));
        }

        @Override
        public List<Object> reads() {
            return toDevice ? List.of() : List.of(array);
        }

        @Override
        public List<Object> writes() {
            return toDevice ? List.of(array) : List.of();
        }

        @Override
        public List<Object> updates() {
            return List.of();
        }
    }

    /**
     * Puts nothing on the stream: a task before kernels of TornadoVM's own, so that {@link CudaLibrary} can wait there,
     * in the plan's first execution, for what TornadoVM has not.
     *
     * @param arrays that are to be on the device by then
     */
    record Wait(List<Object> arrays) implements CudaStep {
        private static final IntArray NO_HEADER = new IntArray(3);

        @Override
        public String name() {
            return "wait";
        }

        @Override
        public IntArray header() {
            return NO_HEADER;
        }

        @Override
        public List<Object> reads() {
            return List.of();
        }

        @Override
        public List<Object> writes() {
            return arrays;
        }

        @Override
        public List<Object> updates() {
            return List.of();
        }
    }
}
