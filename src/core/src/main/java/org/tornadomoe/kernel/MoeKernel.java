package org.tornadomoe.kernel;

import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.LoraAdapter;

/**
 * One layer, loaded and ready: hidden states in, the layer's output out. Thread-safe: concurrent calls wait for one
 * another as far as the implementation needs it. The same input gives the same bits, whatever else runs.
 */
public interface MoeKernel extends AutoCloseable {
    /**
     * Runs the layer on M = {@code tokens} tokens.
     *
     * @param hidden [M, H] of the configuration's {@code inDtype} (F32, F16 or BF16) in native order, on the heap or off it; may be longer
     * @param output [M, H] of the same type, written; may be longer
     * @param chosen is told the experts chosen, if given; made for at least M tokens of {@code pairsPerToken} experts. Where the
     *     layer's router is handed in ({@link org.tornadomoe.config.RouterConfig#isHandedIn}), it tells them instead: ids from 0
     *     to E + n - 1, then zero experts, each once a token, or -1; not to be null
     * @throws MoeExecutionException if the device or a kernel failed; {@code output} is then unspecified
     */
    void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen);

    /**
     * Puts an adapter into a slot, or takes out what is there; only where the configuration has adapters. No call is under way
     * meanwhile. The next one may take long: a device may be given all of the layer's weights anew.
     *
     * @param slot from 0
     * @param adapter fits the layer; null for none
     */
    default void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        throw new UnsupportedOperationException("kernel does not support LoRA");
    }

    /**
     * Runs the layer with adapters. Otherwise as the other; a token without one gets the same bits as there.
     *
     * @param slotOfToken [M], the slot of each token's adapter, -1 for none
     */
    default void forward(
            MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen, int[] slotOfToken) {
        throw new UnsupportedOperationException("kernel does not support LoRA");
    }

    /**
     * Runs the layer as {@link #forward} does and leaves the result where it is.
     *
     * @return what each of the device's kernels took, in nanoseconds, by name, in their order; empty where that can't be told
     * @throws MoeExecutionException if the device or a kernel failed
     */
    default Map<String, Long> profile(MemorySegment hidden, int tokens) {
        return Map.of();
    }

    /**
     * Another lane: a kernel over the same weights, adapters included, with activations of its own, so that both can run at the
     * same time. It is closed before this one.
     *
     * @return null where calls can't share weights
     */
    default @Nullable MoeKernel lane() {
        return null;
    }

    /**
     * This kernel and others, each of which has a part of a layer on a device of its own, as one whose output is the sum of theirs, in this
     * order, in float: the hidden states go to this one's device and from there to the others', and the parts of the output come together there. To
     * be asked after a call of each; whoever asks keeps the parts, and closes what is given before them. Its output should be compared with theirs once.
     *
     * @return null where these can't
     * @throws MoeExecutionException if a device refused it
     */
    default @Nullable MoeKernel joinedWith(List<MoeKernel> others) {
        return null;
    }

    /** From now on calls take note of what each stage takes, for {@link #stageTimes}, as far as the kernel can. */
    default void timeStages() {}

    /**
     * What the last call's stages took, in nanoseconds, by name in their order. To be asked by whoever made that call, before another
     * is made; empty without {@link #timeStages} and where that can't be told.
     */
    default Map<String, Long> stageTimes() {
        return Map.of();
    }

    /**
     * Tells which pairs are this kernel's from now on, where experts move by load ({@link
     * org.tornadomoe.config.FusedMoeParallelConfig#enableEplb}); until then all of the experts' that it has. No call is under way meanwhile.
     *
     * @param replicas of the whole layer's experts, those that aren't here included
     */
    default void setReplicas(Replicas replicas) {
        throw new UnsupportedOperationException("kernel does not support EPLB");
    }

    /**
     * [experts here], by their local numbers: the pairs of each in the last call, where experts move by load. To be asked by whoever made that
     * call, before another is made; valid until then.
     */
    default int[] expertLoads() {
        throw new UnsupportedOperationException("kernel does not support EPLB");
    }

    /**
     * Whether a kernel that fails may go unnoticed where it runs, so that the results of a first call should be compared with
     * the definition's.
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

    /** Frees what it holds. The layer that owns the kernel calls it once, when nothing runs any more and nothing will. */
    @Override
    void close();
}
