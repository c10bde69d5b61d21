package org.tornadomoe.tornado.cuda;

import java.util.List;
import java.util.function.IntToLongFunction;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** One step of a {@link CudaTask}, which {@link CudaLibrary} enqueues on a plan's stream. */
public sealed interface CudaStep permits CudaKernel, CudaStep.Copy, CudaStep.Wait {
    String name();

    /** The header of the layer's call; its first element is M. */
    IntArray header();

    /** Arrays on the device that the step reads. */
    List<Object> reads();

    /** Arrays that the step only writes. */
    List<Object> writes();

    /** Arrays that are read and written. */
    List<Object> updates();

    /**
     * A copy of M tokens' part of an array between host and device; TornadoVM's own transfers copy whole arrays.
     *
     * @param toDevice true to the device, false from it
     * @param elements number of four-byte elements for M tokens, asked for in every call; 0 for no copy
     */
    record Copy(String name, IntArray header, TornadoNativeArray array, boolean toDevice, IntToLongFunction elements)
            implements CudaStep {
        /** The byte offset of a token in the array; 0 if it isn't copied by tokens. */
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
     * Enqueues nothing. It is a task before TornadoVM's own kernels, in which {@link CudaLibrary} can wait, in the
     * plan's first execution, for work that TornadoVM didn't wait for.
     *
     * @param arrays arrays that must be on the device by then
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
