package org.tornadomoe.cli;

import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.device.TornadoHome;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** The options of every command that choose where to compute. */
final class Target {
    private static final List<String> BACKENDS = List.of("auto", "triton", "cpu", "reference");

    /** A device, or a kind of devices. */
    private static final Pattern DEVICES =
            Pattern.compile("gpu|cuda|ptx|nvidia|opencl|metal|spirv", Pattern.CASE_INSENSITIVE);

    @Spec(Spec.Target.MIXEE)
    CommandSpec spec;

    @Option(
            names = "--backend",
            paramLabel = "NAME",
            defaultValue = "auto",
            description =
                    "Where to compute: auto (a GPU through TornadoVM, otherwise the CPU), triton (TornadoVM or the"
                            + " kernel interpreter), cpu, or reference (slow, float64); default ${DEFAULT-VALUE}.")
    String backend = "auto";

    @Option(
            names = {"--device", "--devices"},
            paramLabel = "ID",
            split = ",",
            description =
                    "A device's name as in 'moe devices', such as cuda:0, or its first part, such as cuda; default the"
                            + " best device. Several devices share the layer.")
    List<String> devices = List.of();

    @Option(
            names = "--parallel",
            paramLabel = "HOW",
            defaultValue = "expert",
            description =
                    "How several devices share a layer: expert (each has some of the experts) or tensor (each has a"
                            + " slice of every expert's intermediate size); default ${DEFAULT-VALUE}.")
    String parallel = "expert";

    @Option(
            names = "--redundant-experts",
            paramLabel = "N",
            description = "Balance the load of several devices: move experts between them and copy the busiest ones, N"
                    + " copies in all (0: only move). By default experts stay where they are.")
    @Nullable
    Integer redundantExperts;

    @Option(
            names = "--eplb-window",
            paramLabel = "N",
            description = "With --redundant-experts: how many calls before a move count as load; default 1000.")
    @Nullable
    Integer eplbWindow;

    @Option(
            names = "--eplb-interval",
            paramLabel = "N",
            description = "With --redundant-experts: how many calls lie between two moves; the first move comes after a"
                    + " quarter of them; default 3000.")
    @Nullable
    Integer eplbInterval;

    @Option(
            names = "--kernel",
            paramLabel = "NAME",
            description = "The kernel class to use, such as CpuExperts; default the first that can run the layer.")
    @Nullable
    String kernel;

    /** TornadoVM's SDK doesn't work in the JVM that the launcher started with it. */
    static final class NoUseForSdkException extends RuntimeException {
        private static final long serialVersionUID = 1L;

        NoUseForSdkException(String message) {
            super(message);
        }
    }

    /**
     * Chooses where a layer will run, with a line on standard error if a user may expect another device.
     *
     * @param config the layer's configuration
     * @throws IllegalArgumentException if an option names something unknown
     * @throws UnsupportedOperationException if nothing serves the layer
     */
    Sharding choose(FusedMoeConfig config, QuantKey weightKey, @Nullable QuantKey activationKey) {
        String note = homeNote();
        Sharding sharding = select(config, weightKey, activationKey);
        Selection selection = sharding.ranks().getFirst();
        if (selection.backend() == Int8MoeBackend.REFERENCE
                && !selection.refusals().isEmpty()) {
            // If there is no home, that is the reason, and every class's refusal follows from it.
            note = "running on the reference, in float64: "
                    + (TornadoHome.current().devices().isEmpty() && note != null
                            ? note
                            : String.join("; ", selection.refusals()));
        }
        if (note != null && selection.backend() == Int8MoeBackend.CPU) {
            note = note.replace("running on the interpreter", "running on the CPU");
        }
        if (note != null && !backend.equals("reference") && !backend.equals("cpu")) {
            Output.note(spec, note);
        }
        return sharding;
    }

    /** As {@link #choose}, for commands that use one device only. */
    Selection chooseOne(FusedMoeConfig config, QuantKey weightKey, @Nullable QuantKey activationKey) {
        if (devices.size() > 1) {
            throw new IllegalArgumentException("--devices: expected one device for this command, got " + devices);
        }
        return choose(config, weightKey, activationKey).ranks().getFirst();
    }

    /** The oracle's choice, without output. Throws as {@link #choose}. */
    Sharding select(FusedMoeConfig config, Int8Quantization quantization) {
        return select(config, quantization.weightKey(), quantization.activationKey());
    }

    Sharding select(FusedMoeConfig config, QuantKey weightKey, @Nullable QuantKey activationKey) {
        return sharding(config.toBuilder().moeBackend(backend()).build(), weightKey, activationKey);
    }

    /** Throws as {@link #choose}, naming the option that is wrong. */
    Sharding sharding(FusedMoeConfig config, QuantKey weightKey, @Nullable QuantKey activationKey) {
        try {
            return Sharding.of(
                    Int8MoeOracle.installed(),
                    config,
                    weightKey,
                    activationKey,
                    kernel,
                    devices,
                    isExpertParallel(),
                    loadBalancing());
        } catch (IllegalArgumentException wrong) {
            String said = String.valueOf(wrong.getMessage());
            throw new IllegalArgumentException(
                    said.startsWith("device: ") ? "--" + said : said.replaceFirst("^kernel class: ", "--kernel: "),
                    wrong);
        }
    }

    /** @throws IllegalArgumentException if there is no such backend */
    String backend() {
        if (BACKENDS.contains(backend)) {
            return backend;
        }
        throw new IllegalArgumentException("--backend: expected auto, triton, cpu or reference, got '" + backend + "'"
                + (DEVICES.matcher(backend).find()
                        ? ": auto takes a GPU, and --device takes one by its name in 'moe devices'"
                        : ""));
    }

    /**
     * The load balancing options; null for none. Experts move in the last call of an interval, so that no timed call
     * runs beside a move.
     */
    @Nullable
    EplbConfig loadBalancing() {
        if (redundantExperts == null) {
            if (eplbWindow != null || eplbInterval != null) {
                throw new IllegalArgumentException("--eplb-window, --eplb-interval: expected --redundant-experts with"
                        + " them, which switches load balancing on");
            }
            return null;
        }
        EplbConfig eplb =
                EplbConfig.DEFAULT.withNumRedundantExperts(redundantExperts).withUseAsync(false);
        if (eplbWindow != null) {
            eplb = eplb.withWindowSize(eplbWindow);
        }
        return eplbInterval == null ? eplb : eplb.withStepInterval(eplbInterval);
    }

    /** Whether the devices share the experts. */
    boolean isExpertParallel() {
        return switch (parallel) {
            case "expert" -> true;
            case "tensor" -> false;
            default ->
                throw new IllegalArgumentException("--parallel: expected expert or tensor, got '" + parallel + "'");
        };
    }

    /**
     * A note for the user about TornadoVM in this JVM; null for none.
     *
     * @throws NoUseForSdkException if the launcher should start another JVM
     */
    @Nullable
    String homeNote() {
        Moe moe = (Moe) spec.root().userObject();
        return note(TornadoHome.current(), backend, moe.environment);
    }

    /** The same for commands that themselves print where a layer runs. */
    @Nullable
    String machineNote() {
        String note = homeNote();
        return note == null ? null : note.replaceFirst(": running on the interpreter$", "");
    }

    static @Nullable String note(TornadoHome home, String backend, Map<String, String> environment) {
        boolean sdkFailed = home.kind() == TornadoHome.Kind.NONE && "1".equals(environment.get("MOE_LAUNCHER"));
        if (sdkFailed && !backend.equals("reference") && !backend.equals("cpu")) {
            throw new NoUseForSdkException(home.note() + ": running on the interpreter");
        }
        return home.note();
    }

    /** Chooses as {@link #choose}, loads and quantises. Throws as {@link MoeLayer#of}. */
    MoeLayer load(ExpertWeights weights, Int8Quantization quantization, int maxTokens, Progress progress) {
        choose(weights.config().withMaxNumTokens(maxTokens), quantization.weightKey(), quantization.activationKey());
        return MoeLayer.of(
                weights,
                MoeOptions.DEFAULT
                        .withQuantization(quantization)
                        .withBackend(backend())
                        .withDevices(devices)
                        .withExpertParallel(isExpertParallel())
                        .withLoadBalancing(loadBalancing())
                        .withKernelClass(kernel)
                        .withMaxTokens(maxTokens)
                        .withProgress(progress));
    }
}
