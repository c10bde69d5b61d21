package org.tornadomoe.kernel;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tuning.LaunchSpace;

/**
 * A kernel class: says which layers it can serve, and loads a kernel for a layer. Stateless and thread-safe.
 *
 * <p>The oracle finds kernel classes through {@link java.util.ServiceLoader}: a public class with a public no-argument
 * constructor, named in {@code META-INF/services/org.tornadomoe.kernel.FusedMoeExperts} or provided by a module. The
 * {@code supports} methods are the predicates of vLLM's {@code modular_kernel.py}; {@link #isSupportedConfig} asks them
 * in vLLM's order.
 */
public interface FusedMoeExperts {
    /** The kernel class's name in reports. */
    default String name() {
        return getClass().getSimpleName();
    }

    /** Its backend. */
    Int8MoeBackend backend();

    /** Its place among the backend's classes; lower comes first. */
    int order();

    /** The devices it can run on, by id, best first; empty if this machine has none. */
    List<String> devices();

    /** Why there may be fewer devices than a user expects, such as a missing installation; null if nothing is wrong. */
    default @Nullable String devicesNote() {
        return null;
    }

    /**
     * The device on which it would run a layer, in human-readable form; the configuration's device name if there is no
     * such device.
     */
    String device(FusedMoeConfig config);

    /** Whether this machine has the device that the configuration names, or any device if it names none. */
    boolean supportsCurrentDevice(FusedMoeConfig config);

    /** Whether it supports experts without a gate. */
    default boolean supportsNoActAndMul() {
        return false;
    }

    boolean supportsActivation(MoeActivation activation);

    /** Whether it supports these keys; null means not quantised. */
    boolean supportsQuantScheme(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey);

    boolean supportsParallelConfig(FusedMoeParallelConfig parallel);

    default boolean supportsRoutingMethod(
            RoutingMethodType method, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return true;
    }

    default boolean supportsRouterLogitsDtype(ScalarType dtype, RoutingMethodType method) {
        return true;
    }

    default boolean supportsShape(int hiddenDim) {
        return true;
    }

    default boolean supportsActivationFormat(FusedMoeActivationFormat format) {
        return format == FusedMoeActivationFormat.STANDARD;
    }

    /**
     * Where its GEMMs round more than the definition, in human-readable form: which activations or weights are
     * narrower, and the error that this causes; null if only the order of float sums differs.
     *
     * @param weightKey one that it supports
     */
    default @Nullable String rounding(@Nullable QuantKey weightKey) {
        return null;
    }

    /** Whether a token's output doesn't depend on the other tokens of a call. */
    default boolean supportsBatchInvariance() {
        return false;
    }

    default boolean supportsLora() {
        return false;
    }

    /**
     * Whether its alignment supports that many experts; vLLM's supports fewer than 1024, rounded up to whole warps of
     * 32.
     */
    default boolean supportsExperts(int numExperts) {
        return Math.ceilDiv(numExperts, 32) * 32 < 1024;
    }

    /** Whether the experts' projections may have biases. Not one of vLLM's predicates. */
    default boolean supportsBias() {
        return false;
    }

    /**
     * Whether its kernels can compute a part of an expert's pairs, and count the pairs of each expert; see {@link
     * Replicated}. Not one of vLLM's predicates.
     */
    default boolean supportsEplb() {
        return false;
    }

    /**
     * Other obstacles, such as a missing device feature. Asked last, whatever the earlier answers were.
     *
     * @return reasons, the most important one first
     */
    default List<Support> obstacles(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return List.of();
    }

    /** The device memory that a supported layer needs; null if not known in advance. */
    default @Nullable DeviceMemory memory(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return null;
    }

    /** The bytes of device memory that layers may use; {@link Long#MAX_VALUE} if no limit is known. */
    default long memoryLimit(FusedMoeConfig config) {
        return Long.MAX_VALUE;
    }

    /** The possible launch configurations for a supported layer's GEMMs; null if there is nothing to choose. */
    default @Nullable LaunchSpace launches(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        return null;
    }

    /** Whether it serves such a layer on this machine; if not, the first reason in vLLM's order. */
    default Support isSupportedConfig(
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey,
            FusedMoeActivationFormat format) {
        List<Support> refusals = refusals(config, weightKey, activationKey, format);
        return refusals.isEmpty() ? Support.YES : refusals.getFirst();
    }

    /** All reasons against it: first vLLM's, in vLLM's order, then the others. */
    default List<Support> refusals(
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey,
            FusedMoeActivationFormat format) {
        MoeActivation activation = config.activation();
        FusedMoeParallelConfig parallel = config.moeParallelConfig();
        RoutingMethodType method = config.routingMethod();
        ScalarType logits = config.routerLogitsDtype();
        List<Support> no = new ArrayList<>();
        if (!supportsCurrentDevice(config)) {
            add(no, "current device " + device(config), devices().isEmpty() ? null : "device: one of " + devices());
        }
        if (!activation.isGated() && !supportsNoActAndMul()) {
            add(no, "no act_and_mul MLP layer", "activation: a gated one");
        }
        if (!supportsActivation(activation)) {
            add(
                    no,
                    "MoEActivation." + activation.name() + " activation",
                    oneOf("activation", List.of(MoeActivation.values()), this::supportsActivation));
        }
        if (!supportsQuantScheme(weightKey, activationKey)) {
            add(
                    no,
                    "quantization scheme " + python(weightKey) + "x" + python(activationKey),
                    oneOf(
                            "scheme",
                            List.of(Int8Scheme.values()),
                            s -> supportsQuantScheme(s.weightKey(), s.activationKey())));
        }
        if (!supportsParallelConfig(parallel)) {
            String otherBackend = oneOf(
                    "all-to-all backend",
                    FusedMoeParallelConfig.ALL2ALL_BACKENDS,
                    name -> supportsParallelConfig(parallel.withAll2allBackend(name)));
            String alone = supportsParallelConfig(FusedMoeParallelConfig.NO_PARALLEL) ? "one rank" : null;
            add(no, "parallel config " + parallel, otherBackend == null ? alone : otherBackend);
        }
        if (!supportsRoutingMethod(method, weightKey, activationKey)) {
            add(
                    no,
                    "routing method " + method.number(),
                    oneOf(
                            "routing method",
                            List.of(RoutingMethodType.values()),
                            m -> supportsRoutingMethod(m, weightKey, activationKey)));
        }
        if (!supportsRouterLogitsDtype(logits, method)) {
            add(
                    no,
                    "router logits dtype " + logits,
                    oneOf("router logits", List.of(ScalarType.values()), d -> supportsRouterLogitsDtype(d, method)));
        }
        if (!supportsShape(config.hiddenDim())) {
            int from = config.hiddenDim();
            String next = IntStream.rangeClosed(from, (int) Math.min(from + 4096L, Integer.MAX_VALUE))
                    .filter(this::supportsShape)
                    .mapToObj(h -> "hidden dim: padded to " + h)
                    .findFirst()
                    .orElse(null);
            add(no, config.hiddenDim() + " hidden dim is not supported", next);
        }
        if (!supportsActivationFormat(format)) {
            add(
                    no,
                    format + " activation format",
                    Arrays.stream(FusedMoeActivationFormat.values())
                            .filter(this::supportsActivationFormat)
                            .map(FusedMoeActivationFormat::value)
                            .collect(Collectors.joining(" or ", "activation format: ", "")));
        }
        if (config.batchInvariant() && !supportsBatchInvariance()) {
            add(no, "batch invariance", "no batch invariance");
        }
        if (config.isLoraEnabled() && !supportsLora()) {
            add(no, "LoRA", "no LoRA");
        }
        if (!supportsExperts(config.globalNumExperts())) {
            no.add(Support.no(
                    "kernel's moe_align_block_size requires fewer than 1024 padded experts", "experts: at most 992"));
        }
        if (config.hasBias() && !supportsBias()) {
            add(no, "biases", "no biases");
        }
        if (parallel.enableEplb() && !supportsEplb()) {
            add(no, "EPLB", "no load balancing");
        }
        no.addAll(obstacles(config, weightKey, activationKey));
        return no;
    }

    private static String python(@Nullable QuantKey key) {
        return key == null ? "None" : key.toString();
    }

    private static void add(List<Support> refusals, String what, @Nullable String remedy) {
        refusals.add(Support.no("kernel does not support " + what, remedy));
    }

    private static <T> @Nullable String oneOf(String what, Collection<T> values, Predicate<T> supported) {
        List<T> served = values.stream().filter(supported).toList();
        return served.isEmpty() ? null : what + ": one of " + served;
    }

    /**
     * Loads a layer. It copies the weights; the caller may close them afterwards.
     *
     * @param config the layer's configuration, with the device and the maximum number of tokens per call
     * @param experts the layer's weights
     * @throws InsufficientMemoryException before anything is allocated, if the layer doesn't fit
     * @throws MoeExecutionException if the device refuses the layer
     */
    MoeKernel load(FusedMoeConfig config, Int8Experts experts);

    /**
     * Runs every stage separately on its given inputs and returns each stage's outputs, to compare a kernel class with
     * other implementations' numbers. Slow. It routes the given logits unchanged.
     *
     * @param hidden [M, H]
     * @param tokens M
     * @param given the stages' inputs; its outputs are ignored
     * @throws MoeExecutionException if the device failed
     */
    StageValues stages(FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given);
}
