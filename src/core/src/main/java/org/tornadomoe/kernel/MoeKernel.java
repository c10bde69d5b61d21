package org.tornadomoe.kernel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * One layer, loaded and ready: hidden states in, the layer's output out. Thread-safe: concurrent calls wait for one
 * another as far as the implementation needs it. The same input gives the same bits, whatever else runs. What only some
 * kernels can is said by {@link Adapters}, {@link Replicated} and {@link Profiled}.
 */
public interface MoeKernel extends AutoCloseable {
    /**
     * Runs the layer on M = {@code tokens} tokens.
     *
     * @param hidden [M, H] of the configuration's {@code inDtype} (F32, F16 or BF16) in native order, on the heap or
     *     off it; may be longer
     * @param output [M, H] of the same type, written; may be longer
     * @param chosen takes the experts chosen, if given; made for at least M tokens of {@code pairsPerToken} experts.
     *     Where the layer's router is handed in ({@link org.tornadomoe.config.RouterConfig#isHandedIn}), it brings them
     *     instead: ids from 0 to E + n - 1, then zero experts, each once a token, or -1; not to be null
     * @param slotOfToken [M], the slot of each token's adapter, -1 for none; null for no adapters at all, and of a
     *     layer without room for {@link Adapters} always. A token without an adapter gets the same bits either way
     * @throws MoeExecutionException if the device or a kernel failed; {@code output} is then unspecified
     */
    void forward(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken);

    /**
     * Another lane: a kernel over the same weights, adapters included, with activations of its own, so that both can
     * run at the same time. It is closed before this one.
     *
     * @return null where calls can't share weights
     */
    default @Nullable MoeKernel lane() {
        return null;
    }

    /**
     * This kernel and others, each of which has a part of a layer on a device of its own, as one whose output is the
     * sum of theirs, in this order, in float: the devices hand one another hidden states and parts of the output. To
     * be asked after a call of each; whoever asks keeps the parts, and closes what is given before them. Its output
     * should be compared with theirs once. It takes no adapters.
     *
     * @return null where these can't
     * @throws MoeExecutionException if a device refused it
     */
    default @Nullable MoeKernel joinedWith(List<MoeKernel> others) {
        return null;
    }

    /**
     * Memory for a caller's hidden states or output, zeros at first, that lives as long as the arena. The kernel's
     * device may copy from and to it without the host's help; any other memory does as well.
     */
    default MemorySegment allocate(long bytes, Arena arena) {
        return arena.allocate(bytes, 64);
    }

    /**
     * Whether a kernel that fails may go unnoticed where it runs, so that the results of a first call should be
     * compared with the definition's.
     */
    default boolean needsSelfCheck() {
        return false;
    }

    /** Where it runs, for people: backend and device name. */
    String device();

    /** Bytes of device memory held, the weights included. */
    long deviceBytes();

    /** The same of each of its devices, in their order. */
    default List<Long> bytesByDevice() {
        return List.of(deviceBytes());
    }

    /**
     * Frees what it holds. The layer that owns the kernel calls it once, when nothing runs any more and nothing will.
     */
    @Override
    void close();
}
