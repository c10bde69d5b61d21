package org.tornadomoe.kernel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * One loaded layer: it takes hidden states and computes the layer's output. Thread-safe: concurrent calls wait for one
 * another as far as the implementation needs it. The same input gives the same bits, whatever else runs. Operations
 * that only some kernels support are in {@link Adapters}, {@link Replicated} and {@link Profiled}.
 */
public interface MoeKernel extends AutoCloseable {
    /**
     * Runs the layer on M = {@code tokens} tokens.
     *
     * @param hidden [M, H] of the configuration's {@code inDtype} (F32, F16 or BF16) in native byte order, on the heap
     *     or off-heap; may be longer
     * @param output [M, H] of the same type, written; may be longer
     * @param chosen receives the chosen experts, unless null; must have room for at least M tokens of {@code
     *     pairsPerToken} experts. If the layer's router is handed in ({@link
     *     org.tornadomoe.config.RouterConfig#isHandedIn}), it is an input instead and must not be null: ids from 0 to E
     *     + n - 1, then zero experts, each at most once per token, or -1
     * @param slotOfToken [M], the slot of each token's adapter, -1 for none; null for no adapters at all; always null
     *     if the layer has no room for {@link Adapters}. A token without an adapter gets the same bits either way
     * @throws MoeExecutionException if the device or a kernel failed; {@code output} is then unspecified
     */
    void forward(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken);

    /**
     * Makes another lane: a kernel with the same weights and adapters and its own activation buffers, so that both can
     * run at the same time. It is closed before this one.
     *
     * @return null if calls can't share weights
     */
    default @Nullable MoeKernel lane() {
        return null;
    }

    /**
     * Joins this kernel with others, each with a part of the layer on its own device, into one kernel. Its output is
     * the sum of theirs, in this order, in float; the devices exchange hidden states and parts of the output directly.
     * Call it after a call of each kernel. The caller keeps the parts and closes the joined kernel before them. The
     * caller should compare its output with the parts' once. It supports no adapters.
     *
     * @return null if these kernels can't be joined
     * @throws MoeExecutionException if a device refused it
     */
    default @Nullable MoeKernel joinedWith(List<MoeKernel> others) {
        return null;
    }

    /**
     * Allocates memory for a caller's hidden states or output, filled with zeros, that lives as long as the arena. The
     * kernel's device may copy from and to it without the host's cores; other memory works too.
     */
    default MemorySegment allocate(long bytes, Arena arena) {
        return arena.allocate(bytes, 64);
    }

    /**
     * Whether a failing kernel may go unnoticed on its device, so that the first call's results should be compared with
     * the definition's.
     */
    default boolean needsSelfCheck() {
        return false;
    }

    /** The device in human-readable form: backend and device name. */
    String device();

    /** Bytes of device memory held, the weights included. */
    long deviceBytes();

    /** The same for each of its devices, in their order. */
    default List<Long> bytesByDevice() {
        return List.of(deviceBytes());
    }

    /** Frees its resources. The layer that owns the kernel calls it once, after the last call has ended. */
    @Override
    void close();
}
