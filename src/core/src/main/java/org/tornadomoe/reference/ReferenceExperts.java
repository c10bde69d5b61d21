package org.tornadomoe.reference;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.GeneralExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.Replicated;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.LoraAdapter;

/** The definition as a kernel class. Slow. */
public class ReferenceExperts implements GeneralExperts {
    @Override
    public Int8MoeBackend backend() {
        return Int8MoeBackend.REFERENCE;
    }

    @Override
    public int order() {
        return 100;
    }

    @Override
    public List<String> devices() {
        return List.of("cpu");
    }

    @Override
    public String device(FusedMoeConfig config) {
        return "cpu";
    }

    /** Runs on any machine, whatever device the configuration names. */
    @Override
    public boolean supportsCurrentDevice(FusedMoeConfig config) {
        return true;
    }

    /** A rank's part computes its part of the sum, for any layout of ranks. */
    @Override
    public boolean supportsParallelConfig(FusedMoeParallelConfig parallel) {
        return true;
    }

    @Override
    public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
        return new Kernel(copy(config, experts));
    }

    private static Int8Experts copy(FusedMoeConfig config, Int8Experts experts) {
        Arena arena = Arena.ofShared();
        try {
            return experts.with(config, copy(arena, experts.w13()), copy(arena, experts.w2()), arena)
                    .build();
        } catch (RuntimeException | Error failure) {
            arena.close();
            throw failure;
        }
    }

    private static int[] expertMap(Int8Experts experts) {
        return IntStream.range(0, experts.config().globalNumExperts())
                .map(experts::expertMap)
                .toArray();
    }

    private static Int8Tensor copy(Arena arena, Int8Tensor from) {
        return new Int8Tensor(
                from.experts(),
                from.rows(),
                from.cols(),
                from.rowsPerScale(),
                from.colsPerScale(),
                arena.allocate(from.values().byteSize(), 64).copyFrom(from.values()),
                from.scales().clone(),
                from.zeroPoints() == null ? null : from.zeroPoints().clone());
    }

    @Override
    public StageValues stages(
            FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
        int h = config.hiddenDim();
        int i = config.intermediateSizePerPartition();
        int k = config.pairsPerToken();
        int pairs = tokens * k;
        boolean int8 = experts.scheme().quantizesActivations();
        double[] weights = Numerics.widen(given.topkWeights());
        double[] x = Reference.inputs(experts, Numerics.widen(hidden), weights);
        double[] act = Numerics.widen(given.act());
        Routing handed = new Routing(tokens, k, given.topkIds(), weights);
        Routing routing = config.router().isHandedIn()
                ? handed
                : Router.route(config, experts.router(), Numerics.widen(given.logits()), tokens);
        int[] map = expertMap(experts);
        int[] local = Arrays.stream(given.topkIds())
                .map(id -> Reference.local(experts, id))
                .toArray();
        QuantizedTokens a1 = Reference.quantize(experts, experts.a1Scales(), local, x, x.length / h, h);
        QuantizedTokens a2 = Reference.quantize(experts, experts.a2Scales(), local, act, pairs, i);
        Alignment alignment = Alignments.align(given.topkIds(), map, true, given.blockSize());
        QuantizedTokens givenA1 = int8 ? new QuantizedTokens(given.a1(), given.a1Scales()) : null;
        QuantizedTokens givenA2 = int8 ? new QuantizedTokens(given.a2(), given.a2Scales()) : null;
        double[] gemm1 = ReferenceGemm.multiply(
                givenA1, x, x.length == pairs * h ? 1 : k, local, experts.w13(), experts.w13Bias());
        double[] gemm2 = ReferenceGemm.multiply(givenA2, act, 1, local, experts.w2(), experts.w2Bias());
        double[] output = Reference.combine(Numerics.widen(given.gemm2()), tokens, k, h);
        Reference.addZeroExperts(config, map[0], hidden, handed, output);
        return new StageValues(
                given.logits(),
                routing.ids(),
                Numerics.narrow(routing.weights()),
                given.blockSize(),
                alignment.sortedTokenIds(),
                alignment.expertIds(),
                a1 == null ? new byte[0] : a1.values(),
                a1 == null ? new float[0] : a1.scales(),
                Numerics.narrow(gemm1),
                Numerics.narrow(Activations.apply(config, Numerics.widen(given.gemm1()), pairs)),
                a2 == null ? new byte[0] : a2.values(),
                a2 == null ? new float[0] : a2.scales(),
                Numerics.narrow(Reference.onOutput(config, gemm2, weights)),
                Numerics.narrow(output));
    }

    /** Needs no lock: except for the loads, the reference keeps no state between calls. */
    private static final class Kernel implements MoeKernel, Adapters, Replicated {
        private final Int8Experts experts;
        private volatile @Nullable Replicas replicas;
        private volatile int[] loads = {};
        private final @Nullable LoraAdapter[] adapters;

        Kernel(Int8Experts experts) {
            this.experts = experts;
            adapters = new LoraAdapter[experts.config().maxLoras()];
            replicas = experts.config().moeParallelConfig().enableEplb()
                    ? Replicas.allHere(experts.config().globalNumExperts(), experts::expertMap)
                    : null;
        }

        @Override
        public void setAdapter(int slot, @Nullable LoraAdapter adapter) {
            adapters[slot] = adapter;
        }

        @Override
        public void forward(
                MemorySegment hidden,
                int tokens,
                MemorySegment output,
                @Nullable ChosenExperts chosen,
                int @Nullable [] slotOfToken) {
            List<@Nullable LoraAdapter> adapterOfToken = slotOfToken == null ? null : new ArrayList<>();
            for (int m = 0; slotOfToken != null && adapterOfToken != null && m < tokens; m++) {
                adapterOfToken.add(slotOfToken[m] < 0 ? null : adapters[slotOfToken[m]]);
            }
            int values = tokens * experts.config().hiddenDim();
            float[] in = new float[values];
            HiddenStates.read(experts.config().inDtype(), hidden, in, values);
            boolean handed = experts.config().router().isHandedIn();
            FusedMoeConfig config = experts.config();
            double[] logits =
                    handed ? new double[0] : Router.logits(config, experts.router(), Numerics.widen(in), tokens);
            Routing routed = handed ? handedIn(chosen, tokens) : Router.route(config, experts.router(), logits, tokens);
            Stages stages = Reference.forward(experts, in, logits, placed(routed), adapterOfToken);
            float[] out = Numerics.narrow(stages.output());
            HiddenStates.write(experts.config().inDtype(), out, values, output);
            if (chosen != null && !handed) {
                System.arraycopy(routed.ids(), 0, chosen.ids(), 0, routed.ids().length);
                System.arraycopy(Numerics.narrow(routed.weights()), 0, chosen.weights(), 0, routed.weights().length);
            }
        }

        /** Removes the pairs of other devices, with load balancing, and records the loads. */
        private Routing placed(Routing routed) {
            Replicas here = replicas;
            if (here == null) {
                return routed;
            }
            int[] load = new int[experts.w13().experts()];
            int[] ids = routed.ids().clone();
            for (int p = 0; p < ids.length; p++) {
                ids[p] = here.isHere(ids[p], p / routed.topK()) ? ids[p] : -1;
                int local = Reference.local(experts, ids[p]);
                if (local >= 0) {
                    load[local]++;
                }
            }
            loads = load;
            return new Routing(routed.tokens(), routed.topK(), ids, routed.weights());
        }

        @Override
        public void setReplicas(Replicas replicas) {
            this.replicas = replicas;
        }

        @Override
        public int[] expertLoads() {
            return loads;
        }

        private static Routing handedIn(@Nullable ChosenExperts chosen, int tokens) {
            ChosenExperts given = Objects.requireNonNull(chosen, "chosen");
            int pairs = tokens * given.topK();
            return new Routing(
                    tokens,
                    given.topK(),
                    Arrays.copyOf(given.ids(), pairs),
                    Numerics.widen(Arrays.copyOf(given.weights(), pairs)));
        }

        @Override
        public String device() {
            return "cpu (float64 reference)";
        }

        @Override
        public long deviceBytes() {
            return experts.bytes();
        }

        @Override
        public void close() {
            experts.close();
        }
    }
}
