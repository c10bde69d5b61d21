package org.tornadomoe.cli;

import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.oracle.Explanation;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.tornado.device.DeviceProfile;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** {@code moe explain}: shows the oracle's candidates for a layer, and why it takes or refuses each kernel class. */
@Command(
        name = "explain",
        description = {
            "Lists the kernel classes that are tried for a layer, and why each is taken or refused.",
            "The list is in the order of trial. For the first refused class it also says what would have to change."
        },
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe explain --checkpoint ~/models/Mixtral-8x7B",
            "  moe explain --shape qwen3-30b-a3b --scheme w8a16_group",
            "  moe explain --checkpoint ~/models/Mixtral-8x7B --device-profile gfx942"
        })
final class Explain implements Callable<Integer> {
    @Spec
    CommandSpec spec;

    @Option(
            names = "--checkpoint",
            paramLabel = "DIR",
            description = "Take the layer's configuration from DIR/config.json; other options override it.")
    @Nullable
    CheckpointName checkpoint;

    @Option(
            names = "--shape",
            paramLabel = "NAME",
            description = "Instead of a checkpoint: a model's name (a wrong one lists them), or sizes E:I:H:K (experts,"
                    + " intermediate, hidden, experts per token). Other options override it.")
    @Nullable
    String shape;

    @Option(names = "--experts", paramLabel = "E", description = "Number of experts.")
    @Nullable
    Integer experts;

    @Option(names = "--top-k", paramLabel = "K", description = "Number of experts per token.")
    @Nullable
    Integer topK;

    @Option(names = "--hidden", paramLabel = "H", description = "Hidden size.")
    @Nullable
    Integer hidden;

    @Option(names = "--intermediate", paramLabel = "I", description = "Intermediate size of an expert.")
    @Nullable
    Integer intermediate;

    @Option(
            names = "--tokens",
            paramLabel = "M",
            defaultValue = "256",
            description = "The largest number of tokens in a call; default ${DEFAULT-VALUE}.")
    int tokens;

    @Option(names = "--activation", paramLabel = "NAME", description = "The activation function; default silu.")
    @Nullable
    String activation;

    @Option(
            names = "--swiglu-limit",
            paramLabel = "L",
            description = "The limit that the activation clamps its inputs to; default the activation's own.")
    @Nullable
    Double swigluLimit;

    @Option(
            names = "--situ-beta",
            paramLabel = "B",
            description = "The constant beta of the activation situ, which requires it.")
    @Nullable
    Double situBeta;

    @Option(
            names = "--routing",
            paramLabel = "NAME",
            description = "Routing method: ${COMPLETION-CANDIDATES}; default RENORMALIZE_NAIVE.")
    @Nullable
    RoutingMethodType routing;

    @Mixin
    Scheme scheme;

    @Option(
            names = "--weight-key",
            paramLabel = "KEY",
            description = "Instead of --scheme: how weights are quantised, such as int8_static_channel_sym, or none.")
    @Nullable
    String weightKey;

    @Option(
            names = "--activation-key",
            paramLabel = "KEY",
            description =
                    "Instead of --scheme: how activations are quantised, such as int8_dynamic_token_sym, or none.")
    @Nullable
    String activationKey;

    @Option(names = "--bias", description = "The experts have biases.")
    boolean bias;

    @Option(names = "--lora", description = "The layer must accept LoRA adapters.")
    boolean lora;

    @Option(
            names = "--batch-invariant",
            description = "A token's output must not depend on the other tokens of its call.")
    boolean batchInvariant;

    @Option(names = "--tp", paramLabel = "N", defaultValue = "1", description = "Number of tensor-parallel ranks.")
    int tp;

    @Option(names = "--dp", paramLabel = "N", defaultValue = "1", description = "Number of data-parallel ranks.")
    int dp;

    @Option(
            names = "--pcp",
            paramLabel = "N",
            defaultValue = "1",
            description = "Number of prefill-context-parallel ranks.")
    int pcp;

    @Option(names = "--sp", paramLabel = "N", defaultValue = "1", description = "Number of sequence-parallel ranks.")
    int sp;

    @Option(
            names = {"--ep", "--expert-parallel"},
            description = "Expert parallelism: all ranks (tp * dp * pcp) share the experts.")
    boolean expertParallel;

    @Option(
            names = "--all2all",
            paramLabel = "NAME",
            defaultValue = "allgather_reducescatter",
            description = "The method that moves tokens between ranks; default ${DEFAULT-VALUE}.")
    String all2all = "allgather_reducescatter";

    @Option(
            names = "--device-profile",
            paramLabel = "NAME",
            description = "Explain for another machine: ${COMPLETION-CANDIDATES}, or a file with a machine's properties"
                    + " (tornado-config/README.md). Runs nothing.",
            completionCandidates = Profiles.class)
    @Nullable
    String deviceProfile;

    /** The library's own profiles. */
    static final class Profiles implements Iterable<String> {
        @Override
        public Iterator<String> iterator() {
            return DeviceProfile.NAMES.iterator();
        }
    }

    @Mixin
    Target target;

    @Mixin
    Reasons reasons;

    @Mixin
    Output output;

    @Override
    public Integer call() {
        if (target.kernel != null) {
            throw new ParameterException(
                    spec.commandLine(), "--kernel: expected none, as every kernel class is explained");
        }
        if (scheme.isGiven() && (weightKey != null || activationKey != null)) {
            throw new ParameterException(
                    spec.commandLine(), "--scheme and --weight-key or --activation-key are mutually exclusive");
        }
        return deviceProfile == null
                ? explain()
                : DeviceProfile.home(deviceProfile).assuming(this::explain);
    }

    private Integer explain() {
        String note = target.machineNote();
        Int8Quantization quantization = scheme.quantization();
        QuantKey weights = weightKey == null ? quantization.weightKey() : key(weightKey);
        QuantKey activations = activationKey == null ? quantization.activationKey() : key(activationKey);
        FusedMoeConfig config = config();
        EplbConfig eplb = target.loadBalancing();
        Sharding sharding = target.devices.size() < 2 && eplb == null ? null : sharding(config, weights, activations);
        Explanation explanation = Int8MoeOracle.installed()
                .explain(sharding == null ? config : sharding.ranks().getFirst().config(), weights, activations);
        List<@Nullable DeviceMemory> memory =
                sharding == null ? List.of() : sharding.memory(Objects.requireNonNull(weights), activations);
        ExplanationReport report = new ExplanationReport(explanation, note, sharding, memory, reasons, output.width());
        output.print(report.json(), report.text());
        return Moe.DONE;
    }

    /** Each device's part. All kernel classes of the first device are explained. */
    private Sharding sharding(FusedMoeConfig layer, @Nullable QuantKey weights, @Nullable QuantKey activations) {
        if (weights == null) {
            throw new ParameterException(
                    spec.commandLine(), "--devices: expected one, as the weights aren't quantised");
        }
        return target.sharding(layer, weights, activations);
    }

    private static @Nullable QuantKey key(String name) {
        return name.equals("none") ? null : QuantKey.fromString(name);
    }

    private FusedMoeConfig config() {
        FusedMoeConfig.Builder layer;
        if (checkpoint != null) {
            if (shape != null) {
                throw new ParameterException(spec.commandLine(), "expected --checkpoint or --shape, got both");
            }
            layer = MoeCheckpoint.config(checkpoint.path()).toBuilder();
        } else if (shape != null) {
            layer = BenchShape.of(shape).config(tokens).toBuilder();
        } else {
            requireSizes();
            layer = FusedMoeConfig.builder();
        }
        set(experts, layer::numExperts);
        set(topK, layer::expertsPerToken);
        set(hidden, layer::hiddenDim);
        set(intermediate, layer::intermediateSize);
        set(activation == null ? null : MoeActivation.fromString(activation), layer::activation);
        set(swigluLimit, layer::swigluLimit);
        set(situBeta, layer::activationSituBeta);
        set(routing == null ? null : RouterConfig.of(routing), layer::router);
        set(bias ? true : null, layer::hasBias);
        return layer.maxNumTokens(tokens)
                .isLoraEnabled(lora)
                .batchInvariant(batchInvariant)
                .moeBackend(target.backend())
                .device(target.devices.size() == 1 ? target.devices.getFirst() : null)
                .moeParallelConfig(FusedMoeParallelConfig.builder()
                        .tp(tp, 0)
                        .dp(dp, 0)
                        .pcp(pcp, 0)
                        .sp(sp)
                        .expertParallel(expertParallel)
                        .all2allBackend(all2all)
                        .build())
                .build();
    }

    private void requireSizes() {
        Map<String, @Nullable Integer> sizes = new LinkedHashMap<>();
        sizes.put("--experts", experts);
        sizes.put("--top-k", topK);
        sizes.put("--hidden", hidden);
        sizes.put("--intermediate", intermediate);
        List<String> missing =
                sizes.keySet().stream().filter(name -> sizes.get(name) == null).toList();
        if (!missing.isEmpty()) {
            throw new ParameterException(
                    spec.commandLine(),
                    "expected --checkpoint, --shape, or the layer's sizes, got none for " + String.join(", ", missing));
        }
    }

    private static <T> void set(@Nullable T value, Consumer<T> into) {
        if (value != null) {
            into.accept(value);
        }
    }
}
