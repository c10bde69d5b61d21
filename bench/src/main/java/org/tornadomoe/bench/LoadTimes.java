package org.tornadomoe.bench;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.locks.LockSupport;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;

/**
 * Measures the processor and wall time of making a layer of a checkpoint's first MoE layer, once the checkpoint is
 * open. {@code LoadTimes ROUNDS [on=DEVICE[/CLASS],...] [experts=E] [scheme=SCHEME]
 * CHECKPOINT...}: the devices and kernel classes, by default {@code cpu}, and the scheme, by default the checkpoint's,
 * count for the checkpoints behind them. A checkpoint is a
 * directory or a GGUF file with this one layer, or one of {@link RandomCheckpoint}'s formats, or {@code all} of them,
 * with 32 experts or E, H 2048 and I 768. It prints GB per second of the file and of the resulting int8 weights, for
 * the best round of each, and the milliseconds that the loading thread and the device's spent on what: reading and
 * decoding, host memory, packing, compiling, copying to the device, and first calls.
 */
public final class LoadTimes {
    private static final long SAMPLED_MILLIS = 2;

    /** What a thread does, by the first of these that is in a name in its stack. */
    private static final Map<String, String> PHASES = new LinkedHashMap<>();

    static {
        PHASES.put("StoredInt8", "reading");
        PHASES.put("Int8Quantizer", "reading");
        PHASES.put("HostMemory", "memory");
        PHASES.put("tornado.layout.", "packing");
        PHASES.put("PackedWeights", "packing");
        PHASES.put("LayerArrays", "packing");
        PHASES.put("preCompil", "compiling");
        PHASES.put("PreCompil", "compiling");
        PHASES.put("Compiler", "compiling");
        PHASES.put("Nvrtc", "compiling");
        PHASES.put("compile", "compiling");
        PHASES.put("nvrtc", "compiling");
        PHASES.put("write", "copying");
        PHASES.put("Write", "copying");
        PHASES.put("SelfCheck", "first calls");
    }

    private final int rounds;
    private List<MoeOptions> all = List.of(MoeOptions.DEFAULT.withBackend("cpu"));
    private int experts = 32;
    private @Nullable Int8Quantization asked;

    private LoadTimes(int rounds) {
        this.rounds = rounds;
    }

    public static void main(String[] args) throws IOException {
        LoadTimes times = new LoadTimes(Integer.parseInt(args[0]));
        for (int i = 1; i < args.length; i++) {
            String arg = args[i];
            if (arg.startsWith("on=")) {
                times.all = Stream.of(arg.substring(3).split(","))
                        .map(LoadTimes::on)
                        .toList();
            } else if (arg.startsWith("experts=")) {
                times.experts = Integer.parseInt(arg.substring(8));
            } else if (arg.startsWith("scheme=")) {
                Int8Scheme scheme = Int8Scheme.valueOf(arg.substring(7).toUpperCase(Locale.ROOT));
                times.asked = Int8Quantization.of(scheme);
            } else if (arg.equals("all")) {
                for (String format : RandomCheckpoint.formats()) {
                    times.random(format);
                }
            } else if (RandomCheckpoint.formats().contains(arg)) {
                times.random(arg);
            } else {
                times.load(arg, Path.of(arg));
            }
        }
    }

    /** {@code cpu}, or DEVICE or DEVICE/CLASS. */
    private static MoeOptions on(String what) {
        if (what.equals("cpu")) {
            return MoeOptions.DEFAULT.withBackend(what);
        }
        String[] parts = what.split("/", 2);
        return MoeOptions.DEFAULT
                .withBackend("triton")
                .withDevice(parts[0])
                .withKernelClass(parts.length > 1 ? parts[1] : null);
    }

    private void random(String format) throws IOException {
        Path folder = Files.createTempDirectory("load");
        try {
            load(format, RandomCheckpoint.write(format, folder, experts, 2048, 768));
        } finally {
            try (Stream<Path> files = Files.list(folder)) {
                for (Path file : files.toList()) {
                    Files.delete(file);
                }
            }
            Files.delete(folder);
        }
    }

    private void load(String name, Path checkpoint) {
        for (MoeOptions options : all) {
            try {
                load(name, checkpoint, options);
            } catch (IllegalArgumentException | UnsupportedOperationException e) { // it serves another scheme
                System.out.println(name + ": " + e.getMessage());
            }
        }
    }

    private void load(String name, Path checkpoint, MoeOptions options) {
        long bytes = bytes(checkpoint);
        String best = "";
        long least = Long.MAX_VALUE;
        for (int round = 0; round < rounds; round++) {
            try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint)) {
                ExpertWeights weights = opened.layer(opened.moeLayers().getFirst());
                Int8Quantization quantization = asked == null ? weights.quantization() : asked;
                long[] start = now();
                Phases phases = new Phases();
                try (MoeLayer layer = MoeLayer.of(weights, options.withQuantization(quantization))) {
                    long[] made = now();
                    Map<String, Long> spent = phases.end();
                    long took = made[1] - start[1];
                    if (took < least) {
                        least = took;
                        best = "%s: %.3f s (processor %.2f)%s, %.2f GB/s, %.2f of int8, %s, %s"
                                .formatted(
                                        name,
                                        took / 1e9,
                                        (made[0] - start[0]) / 1e9,
                                        spent,
                                        bytes / (double) took,
                                        int8Bytes(weights.config()) / (double) took,
                                        quantization,
                                        layer.kernelClass());
                    }
                } finally {
                    phases.end();
                }
            }
        }
        System.out.println(best);
    }

    /** Samples what the loading thread, and the device's thread that it waits for, do. */
    private static final class Phases {
        private final Thread loading = Thread.currentThread();
        private final Map<String, Long> millis = new TreeMap<>();
        private final Thread sampling = Thread.ofPlatform().daemon().start(this::sample);

        private void sample() {
            long before = System.nanoTime();
            while (!Thread.interrupted()) {
                String phase = phase();
                long now = System.nanoTime();
                millis.merge(phase, now - before, Long::sum);
                before = now;
                LockSupport.parkNanos(SAMPLED_MILLIS * 1_000_000);
            }
            millis.replaceAll((_, nanos) -> nanos / 1_000_000);
        }

        private String phase() {
            List<StackTraceElement> frames = new ArrayList<>(List.of(loading.getStackTrace()));
            Thread.getAllStackTraces().forEach((thread, stack) -> {
                if (thread.getName().startsWith("moe ")) {
                    frames.addAll(0, List.of(stack));
                }
            });
            List<String> names = frames.stream()
                    .map(frame -> frame.getClassName() + "." + frame.getMethodName())
                    .toList();
            return PHASES.entrySet().stream()
                    .filter(phase -> names.stream().anyMatch(frame -> frame.contains(phase.getKey())))
                    .map(Map.Entry::getValue)
                    .findFirst()
                    .orElse("else");
        }

        /** Milliseconds of each. */
        Map<String, Long> end() {
            sampling.interrupt();
            try {
                sampling.join();
            } catch (InterruptedException e) {
                throw new IllegalStateException(e);
            }
            return millis;
        }
    }

    /** The process's processor time and the clock, in nanoseconds. */
    private static long[] now() {
        var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        return new long[] {system.getProcessCpuTime(), System.nanoTime()};
    }

    /** Both projections' values. */
    private static long int8Bytes(FusedMoeConfig config) {
        long rows = config.gateUpRows() + config.intermediateSize();
        return config.globalNumExperts() * rows * config.hiddenDim();
    }

    private static long bytes(Path checkpoint) {
        if (!Files.isDirectory(checkpoint)) {
            return checkpoint.toFile().length();
        }
        try (Stream<Path> files = Files.list(checkpoint)) {
            return files.filter(file -> file.toString().endsWith(".safetensors"))
                    .mapToLong(file -> file.toFile().length())
                    .sum();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
