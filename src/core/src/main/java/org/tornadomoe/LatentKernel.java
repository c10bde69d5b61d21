package org.tornadomoe;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.host.Projection;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.LatentSpace;

/**
 * A layer whose routed experts compute in a {@link LatentSpace}: a kernel of those, on a device or the cores, and one
 * of shared experts. The host projects tokens into the space and their sums back, which takes two matrices of floats.
 */
final class LatentKernel implements MoeKernel {
    /** The matrices, which lanes share. */
    record Projections(LatentSpace space, Projection into, Projection back) {
        static Projections of(LatentSpace space) {
            int h = space.config().hiddenDim();
            int l = space.into().length / h;
            return new Projections(space, new Projection(space.into(), l, h), new Projection(space.back(), h, l));
        }
    }

    private final Projections projections;
    private final ScalarType type;
    private final int hidden;
    private final int latent;
    private final MoeKernel routed;
    private final @Nullable MoeKernel shared;

    /** K of the shared experts' layer. */
    private final int sharedExperts;

    /**
     * @param type of hidden states; the two kernels' are F32
     * @param routed whose routing is handed in
     * @param shared likewise; null if there are no shared experts
     */
    LatentKernel(Projections projections, ScalarType type, MoeKernel routed, @Nullable MoeKernel shared) {
        this.projections = projections;
        this.type = type;
        this.routed = routed;
        this.shared = shared;
        LatentSpace space = projections.space;
        hidden = space.config().hiddenDim();
        latent = space.into().length / hidden;
        sharedExperts = space.shared() == null ? 0 : space.shared().config().numExperts();
    }

    @Override
    public void forward(
            MemorySegment hiddenStates,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken) {
        float[] x = new float[tokens * hidden];
        HiddenStates.read(type, hiddenStates, x, x.length);
        float[] sums = new float[tokens * latent];
        MemorySegment into = MemorySegment.ofArray(projections.into.multiply(x, tokens));
        routed.forward(into, tokens, MemorySegment.ofArray(sums), chosen, null);
        normalize(sums, tokens);
        float[] out = projections.back.multiply(sums, tokens);
        if (shared != null) {
            float[] beside = new float[x.length];
            shared.forward(MemorySegment.ofArray(x), tokens, MemorySegment.ofArray(beside), all(tokens), null);
            for (int i = 0; i < out.length; i++) {
                out[i] += beside[i];
            }
        }
        HiddenStates.write(type, out, out.length, output);
    }

    private void normalize(float[] sums, int tokens) {
        double[] sum = new double[latent];
        for (int t = 0; t < tokens; t++) {
            for (int i = 0; i < latent; i++) {
                sum[i] = sums[t * latent + i];
            }
            projections.space.normalize(sum);
            for (int i = 0; i < latent; i++) {
                sums[t * latent + i] = (float) sum[i];
            }
        }
    }

    /** Every shared expert for each token. */
    private ChosenExperts all(int tokens) {
        ChosenExperts all = ChosenExperts.allocate(tokens, sharedExperts);
        Arrays.setAll(all.ids(), pair -> pair % sharedExperts);
        Arrays.fill(all.weights(), 1);
        return all;
    }

    @Override
    public String device() {
        return routed.device();
    }

    @Override
    public long deviceBytes() {
        return bytesByDevice().stream().mapToLong(Long::longValue).sum();
    }

    @Override
    public List<Long> bytesByDevice() {
        List<Long> bytes = routed.bytesByDevice();
        List<Long> beside = shared == null ? List.of() : shared.bytesByDevice();
        return IntStream.range(0, bytes.size())
                .mapToObj(i -> bytes.get(i) + (i < beside.size() ? beside.get(i) : 0))
                .toList();
    }

    @Override
    public void close() {
        Cleanup.all(
                () -> {
                    if (shared != null) {
                        shared.close();
                    }
                },
                routed::close);
    }
}
