package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.PrepareAndFinalize;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.oracle.Explanation;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.tornado.device.DeviceProfile;
import org.tornadomoe.tuning.LaunchConfigs;
import org.tornadomoe.tuning.LaunchSpace;
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
        Map<String, @Nullable Object> json = json(explanation, note);
        String text = text(explanation, note);
        if (sharding != null) {
            List<@Nullable DeviceMemory> memory = sharding.memory(Objects.requireNonNull(weights), activations);
            json.put("devices", devices(sharding, memory));
            json.put("loadBalancing", json(eplb));
            text += System.lineSeparator() + System.lineSeparator() + text(sharding, memory);
        }
        output.print(json, text);
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

    private static @Nullable Map<String, Integer> json(@Nullable EplbConfig eplb) {
        if (eplb == null) {
            return null;
        }
        Map<String, Integer> json = new LinkedHashMap<>();
        json.put("redundantExperts", eplb.numRedundantExperts());
        json.put("window", eplb.windowSize());
        json.put("interval", eplb.stepInterval());
        return json;
    }

    private static List<Map<String, @Nullable Object>> devices(Sharding sharding, List<@Nullable DeviceMemory> memory) {
        List<Map<String, @Nullable Object>> devices = new ArrayList<>();
        for (Selection rank : sharding.ranks()) {
            Map<String, @Nullable Object> json = new LinkedHashMap<>();
            json.put("device", rank.device());
            json.put("kernelClass", rank.experts().name());
            json.put("experts", rank.config().numLocalExperts());
            json.put("intermediate", rank.config().intermediateSizePerPartition());
            json.put("memory", Output.json(memory.get(devices.size())));
            devices.add(json);
        }
        return devices;
    }

    private static String text(Sharding sharding, List<@Nullable DeviceMemory> memory) {
        List<List<String>> rows = new ArrayList<>();
        rows.add(List.of("device", "kernel class", "experts", "intermediate", "memory"));
        for (Selection rank : sharding.ranks()) {
            DeviceMemory there = memory.get(rows.size() - 1);
            rows.add(List.of(
                    rank.device(),
                    rank.experts().name(),
                    Integer.toString(rank.config().numLocalExperts()),
                    Integer.toString(rank.config().intermediateSizePerPartition()),
                    there == null ? "" : Output.memory(there)));
        }
        return "On " + sharding.ranks().size() + " devices, " + sharding.parallelism() + " parallel:"
                + System.lineSeparator() + Output.table(rows) + text(sharding.eplb());
    }

    private static String text(@Nullable EplbConfig eplb) {
        return eplb == null
                ? ""
                : String.format(
                        Locale.ROOT,
                        "%nLoad balancing: experts move by the load of the last %d of every %d calls, with %d copies"
                            + " (counted above).%nDuring a move a device keeps its old experts beside the new ones if"
                            + " there is room; the host keeps all experts in int8.",
                        eplb.windowSize(),
                        eplb.stepInterval(),
                        eplb.numRedundantExperts());
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

    private static Map<String, @Nullable Object> json(Explanation explanation, @Nullable String note) {
        FusedMoeConfig config = explanation.config();
        Map<String, @Nullable Object> layer = new LinkedHashMap<>();
        layer.put("experts", config.numExperts());
        layer.put("localExperts", config.numLocalExperts());
        layer.put("topK", config.expertsPerToken());
        layer.put("sharedExperts", config.numFusedSharedExperts());
        layer.put("hidden", config.hiddenDim());
        layer.put("intermediate", config.intermediateSize());
        layer.put("intermediatePerPartition", config.intermediateSizePerPartition());
        layer.put("tokens", config.maxNumTokens());
        layer.put("activation", config.activation().toString());
        layer.put("routing", config.routingMethod().name());
        layer.put("bias", config.hasBias());
        layer.put("lora", config.isLoraEnabled());
        layer.put("batchInvariant", config.batchInvariant());
        layer.put("parallel", config.moeParallelConfig().toString());
        layer.put("backend", config.moeBackend());
        layer.put("device", config.device());
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("note", note);
        json.put("layer", layer);
        json.put("weightKey", text(explanation.weightKey()));
        json.put("activationKey", text(explanation.activationKey()));
        json.put("activationFormat", explanation.format().value());
        json.put("prepareAndFinalize", prepareAndFinalize(explanation));
        json.put(
                "candidates",
                explanation.candidates().stream()
                        .map(candidate -> json(candidate, config))
                        .toList());
        json.put("chosen", chosen(explanation));
        Explanation.Candidate taken = explanation.taken();
        json.put("memory", taken == null ? null : Output.json(taken.memory()));
        json.put("failure", explanation.failure());
        json.put("lastResort", explanation.lastResort());
        Explanation.Candidate refused = explanation.firstRefused();
        json.put("firstRefused", refused == null ? null : refused.name());
        json.put("changes", explanation.changes());
        return json;
    }

    private static Map<String, @Nullable Object> json(Explanation.Candidate candidate, FusedMoeConfig config) {
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("backend", candidate.backend().value());
        json.put("kernelClass", candidate.kernelClass());
        json.put("device", candidate.device());
        json.put("supported", candidate.support().supported());
        json.put("reason", candidate.support().reason());
        json.put("rounding", candidate.support().supported() ? candidate.rounding() : null);
        json.put("launch", candidate.support().supported() ? json(candidate.launches(), config) : null);
        json.put("refusals", candidate.refusals().stream().map(Explain::json).toList());
        return json;
    }

    private static Map<String, @Nullable Object> json(Support refusal) {
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("reason", refusal.reason());
        json.put("remedy", refusal.remedy());
        if (refusal.bytesNeeded() > 0) {
            json.put("bytesNeeded", refusal.bytesNeeded());
            json.put("bytesAvailable", refusal.bytesAvailable());
        }
        return json;
    }

    private static @Nullable Map<String, @Nullable Object> json(@Nullable LaunchSpace space, FusedMoeConfig config) {
        if (space == null) {
            return null;
        }
        LaunchConfigs launches = space.find();
        Map<String, @Nullable Object> byTokens = new LinkedHashMap<>();
        launches.upTo(config.maxNumTokens())
                .forEach((tokens, launch) -> byTokens.put(Integer.toString(tokens), launch.toMap()));
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("file", space.key().fileName());
        json.put("source", launches.source());
        json.put("fromTokens", byTokens);
        return json;
    }

    private static @Nullable String chosen(Explanation explanation) {
        Explanation.Candidate taken = explanation.taken();
        return taken == null ? null : taken.name();
    }

    private static String prepareAndFinalize(Explanation explanation) {
        try {
            return PrepareAndFinalize.of(explanation.config(), explanation.activationKey())
                    .className();
        } catch (IllegalArgumentException none) {
            return "none: " + none.getMessage();
        }
    }

    private static @Nullable String text(@Nullable QuantKey key) {
        return key == null ? null : key.toString();
    }

    private String device(String description) {
        return reasons.verbose ? description : Output.deviceId(description);
    }

    private String text(Explanation explanation, @Nullable String note) {
        FusedMoeConfig config = explanation.config();
        List<List<String>> rows = new ArrayList<>();
        rows.add(List.of(
                "layer", config.summary() + ", " + config.routingMethod() + (config.hasBias() ? ", biases" : "")));
        FusedMoeParallelConfig parallel = config.moeParallelConfig();
        if (!parallel.equals(FusedMoeParallelConfig.NO_PARALLEL)) {
            rows.add(List.of("parallel", parallel.toString()));
        }
        rows.add(List.of("weights", reasons.of(explanation.weightKey())));
        rows.add(List.of(
                "activations",
                reasons.of(explanation.activationKey())
                        + (explanation.format() == FusedMoeActivationFormat.STANDARD && !reasons.verbose
                                ? ""
                                : ", " + explanation.format())));
        if (reasons.verbose) {
            rows.add(List.of("prepare, finalize", prepareAndFinalize(explanation)));
        }
        List<List<String>> candidates = new ArrayList<>();
        candidates.add(List.of("kernel class", "backend", "device", "answer"));
        for (int c = 0; c < explanation.candidates().size(); c++) {
            Explanation.Candidate candidate = explanation.candidates().get(c);
            List<String> why = candidate.refusals().stream()
                    .map(refusal -> String.valueOf(refusal.reason()))
                    .toList();
            candidates.add(List.of(
                    candidate.kernelClass() == null ? "" : candidate.kernelClass(),
                    candidate.backend().toString(),
                    candidate.device() == null ? "" : device(candidate.device()),
                    c == explanation.chosen()
                            ? "TAKEN"
                            : candidate.support().supported() ? "would fit" : "no: " + reasons.numbers(why)));
        }
        int width = output.width();
        List<String> lines = new ArrayList<>();
        if (note != null) {
            lines.addAll(Output.wrap(note, width));
            lines.add("");
        }
        lines.add(Output.table(rows, width));
        lines.add("");
        lines.add(Output.table(candidates, width));
        lines.add("");
        if (!reasons.list().isEmpty()) {
            lines.add(Output.table(reasons.list(), width));
            lines.add("");
        }
        lines.addAll(Output.wrap(
                explanation.failure() == null ? "Taken: " + chosen(explanation) : explanation.failure(), width));
        Explanation.Candidate taken = explanation.taken();
        if (taken != null && taken.memory() != null) {
            lines.add("Memory: " + Output.memory(taken.memory()));
        }
        if (taken != null && taken.rounding() != null) {
            lines.addAll(Output.wrap("Rounds: " + taken.rounding(), width));
        }
        if (taken != null && taken.launches() != null) {
            LaunchConfigs launches = taken.launches().find();
            String file = taken.launches().key().fileName();
            lines.add(
                    launches.source() == null
                            ? "Launch configurations, by rule (there is no file " + file + "):"
                            : "Launch configurations, from " + launches.source() + ":");
            launches.upTo(config.maxNumTokens())
                    .forEach((tokens, launch) -> lines.add("  from M = " + tokens + ": " + launch));
        }
        if (explanation.lastResort() != null) {
            lines.add("As the last resort, 'moe run' would take " + explanation.lastResort() + ", in float64.");
        }
        Explanation.Candidate refused = explanation.firstRefused();
        if (refused != null) {
            lines.addAll(Output.wrap(
                    explanation.changes().isEmpty()
                            ? "No change would make " + refused.name() + " fit."
                            : "Needed for " + refused.name() + ": " + String.join("; ", explanation.changes()),
                    width));
        }
        return String.join(System.lineSeparator(), lines);
    }
}
