package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.PrepareAndFinalize;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.oracle.Explanation;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.tuning.LaunchConfigs;
import org.tornadomoe.tuning.LaunchSpace;

/**
 * What {@code moe explain} prints of an explanation.
 *
 * @param note     what isn't so on this machine, or null
 * @param sharding the parts of several devices, or null
 * @param memory   what each part takes, in its order
 * @param width    of the terminal, in columns
 */
record ExplanationReport(
        Explanation explanation,
        @Nullable String note,
        @Nullable Sharding sharding,
        List<@Nullable DeviceMemory> memory,
        Reasons reasons,
        int width) {
    /** What {@code --json} prints. */
    Map<String, @Nullable Object> json() {
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
        json.put("prepareAndFinalize", prepareAndFinalize());
        json.put(
                "candidates",
                explanation.candidates().stream()
                        .map(candidate -> json(candidate, config))
                        .toList());
        json.put("chosen", chosen());
        Explanation.Candidate taken = explanation.taken();
        json.put("memory", taken == null ? null : Output.json(taken.memory()));
        json.put("failure", explanation.failure());
        json.put("lastResort", explanation.lastResort());
        Explanation.Candidate refused = explanation.firstRefused();
        json.put("firstRefused", refused == null ? null : refused.name());
        json.put("changes", explanation.changes());
        if (sharding != null) {
            json.put("devices", devices(sharding));
            json.put("loadBalancing", json(sharding.eplb()));
        }
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
        json.put(
                "refusals",
                candidate.refusals().stream().map(ExplanationReport::json).toList());
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

    private @Nullable String chosen() {
        Explanation.Candidate taken = explanation.taken();
        return taken == null ? null : taken.name();
    }

    private String prepareAndFinalize() {
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

    /** What is printed else. */
    String text() {
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
            rows.add(List.of("prepare, finalize", prepareAndFinalize()));
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
        lines.addAll(Output.wrap(explanation.failure() == null ? "Taken: " + chosen() : explanation.failure(), width));
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
        if (sharding != null) {
            lines.add("");
            lines.add(text(sharding));
        }
        return String.join(System.lineSeparator(), lines);
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

    private List<Map<String, @Nullable Object>> devices(Sharding sharding) {
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

    private String text(Sharding sharding) {
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
}
