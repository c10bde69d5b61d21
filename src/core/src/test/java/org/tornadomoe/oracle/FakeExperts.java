package org.tornadomoe.oracle;

import java.util.List;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.quant.Int8Experts;

/** A kernel class that supports everything, less what a test names. */
class FakeExperts implements FusedMoeExperts {
    /** The predicates in the order in which they are asked. */
    enum Predicate {
        DEVICE,
        NO_ACT_AND_MUL,
        ACTIVATION,
        QUANT_SCHEME,
        PARALLEL_CONFIG,
        ROUTING_METHOD,
        ROUTER_LOGITS_DTYPE,
        SHAPE,
        ACTIVATION_FORMAT,
        BATCH_INVARIANCE,
        LORA,
        EXPERTS,
        BIAS,
        EPLB,
        OBSTACLES
    }

    private final String name;
    private final Int8MoeBackend backend;
    private final int order;
    private final Set<Predicate> failing;

    FakeExperts(String name, Int8MoeBackend backend, int order, Predicate... failing) {
        this.name = name;
        this.backend = backend;
        this.order = order;
        this.failing = Set.of(failing);
    }

    private boolean ok(Predicate predicate) {
        return !failing.contains(predicate);
    }

    @Override
    public String name() {
        return name;
    }

    @Override
    public Int8MoeBackend backend() {
        return backend;
    }

    @Override
    public int order() {
        return order;
    }

    @Override
    public List<String> devices() {
        return List.of("abacus:0");
    }

    @Override
    public String device(FusedMoeConfig config) {
        return "abacus:0 (Abacus)";
    }

    @Override
    public boolean supportsCurrentDevice(FusedMoeConfig config) {
        return ok(Predicate.DEVICE);
    }

    @Override
    public boolean supportsNoActAndMul() {
        return ok(Predicate.NO_ACT_AND_MUL);
    }

    @Override
    public boolean supportsActivation(MoeActivation activation) {
        return ok(Predicate.ACTIVATION) || activation == MoeActivation.GELU;
    }

    @Override
    public boolean supportsQuantScheme(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return ok(Predicate.QUANT_SCHEME);
    }

    @Override
    public boolean supportsParallelConfig(FusedMoeParallelConfig parallel) {
        return ok(Predicate.PARALLEL_CONFIG);
    }

    @Override
    public boolean supportsRoutingMethod(
            RoutingMethodType method, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return ok(Predicate.ROUTING_METHOD);
    }

    @Override
    public boolean supportsRouterLogitsDtype(ScalarType dtype, RoutingMethodType method) {
        return ok(Predicate.ROUTER_LOGITS_DTYPE);
    }

    @Override
    public boolean supportsShape(int hiddenDim) {
        return ok(Predicate.SHAPE) || hiddenDim % 100 == 0;
    }

    @Override
    public boolean supportsActivationFormat(FusedMoeActivationFormat format) {
        return ok(Predicate.ACTIVATION_FORMAT)
                ? FusedMoeExperts.super.supportsActivationFormat(format)
                : format == FusedMoeActivationFormat.BATCHED_EXPERTS;
    }

    @Override
    public boolean supportsBatchInvariance() {
        return ok(Predicate.BATCH_INVARIANCE);
    }

    @Override
    public boolean supportsLora() {
        return ok(Predicate.LORA);
    }

    @Override
    public boolean supportsEplb() {
        return ok(Predicate.EPLB);
    }

    @Override
    public boolean supportsExperts(int numExperts) {
        return ok(Predicate.EXPERTS) && FusedMoeExperts.super.supportsExperts(numExperts);
    }

    @Override
    public boolean supportsBias() {
        return ok(Predicate.BIAS);
    }

    @Override
    public List<Support> obstacles(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return ok(Predicate.OBSTACLES) ? List.of() : List.of(Support.noMemory("beads are few", "more beads", 12, 10));
    }

    /** What loading throws, since there is no kernel. */
    static final class Loaded extends RuntimeException {
        private static final long serialVersionUID = 1L;
    }

    @Override
    public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
        throw new Loaded();
    }

    @Override
    public StageValues stages(
            FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
        throw new UnsupportedOperationException();
    }
}
