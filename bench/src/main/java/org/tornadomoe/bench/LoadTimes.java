package org.tornadomoe.bench;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;

/**
 * Measures the processor and wall time of loading a checkpoint's first MoE layer: reading and decoding to int8, then
 * packing for the cores. {@code LoadTimes ROUNDS CHECKPOINT...}; a checkpoint is a directory or a GGUF file with this
 * one layer, or one of {@link RandomCheckpoint}'s formats, or {@code all} of them, with 32 experts, H 2048 and I 768.
 * It prints GB per second of the file and of the resulting int8 weights, for the best round of each.
 */
public final class LoadTimes {
    private LoadTimes() {}

    public static void main(String[] args) throws IOException {
        int rounds = Integer.parseInt(args[0]);
        for (int i = 1; i < args.length; i++) {
            if (args[i].equals("all")) {
                for (String format : RandomCheckpoint.formats()) {
                    random(format, rounds);
                }
            } else if (RandomCheckpoint.formats().contains(args[i])) {
                random(args[i], rounds);
            } else {
                load(args[i], Path.of(args[i]), rounds);
            }
        }
    }

    private static void random(String format, int rounds) throws IOException {
        Path folder = Files.createTempDirectory("load");
        try {
            load(format, RandomCheckpoint.write(format, folder, 32, 2048, 768), rounds);
        } finally {
            try (Stream<Path> files = Files.list(folder)) {
                for (Path file : files.toList()) {
                    Files.delete(file);
                }
            }
            Files.delete(folder);
        }
    }

    private static void load(String name, Path checkpoint, int rounds) {
        long bytes = bytes(checkpoint);
        String best = "";
        long least = Long.MAX_VALUE;
        for (int round = 0; round < rounds; round++) {
            try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint)) {
                ExpertWeights weights = opened.layer(opened.moeLayers().getFirst());
                Int8Quantization quantization = weights.quantization();
                long[] start = now();
                try (Int8Experts experts = QuantizedWeights.int8(weights, quantization, Progress.NONE)) {
                    long[] read = now();
                    MoeOptions options = MoeOptions.DEFAULT.withBackend("cpu").withQuantization(quantization);
                    try (MoeLayer layer = MoeLayer.of(experts, options)) {
                        long[] packed = now();
                        long took = packed[1] - start[1];
                        if (took < least) {
                            least = took;
                            best = ("%s: read %.3f s (processor %.2f), packed %.3f s (%.2f), %.2f GB/s, "
                                            + "%.2f of int8, %s, %s")
                                    .formatted(
                                            name,
                                            (read[1] - start[1]) / 1e9,
                                            (read[0] - start[0]) / 1e9,
                                            (packed[1] - read[1]) / 1e9,
                                            (packed[0] - read[0]) / 1e9,
                                            bytes / (double) took,
                                            experts.bytes() / (double) took,
                                            quantization,
                                            layer.kernelClass());
                        }
                    }
                }
            }
        }
        System.out.println(best);
    }

    /** The process's processor time and the clock, in nanoseconds. */
    private static long[] now() {
        var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        return new long[] {system.getProcessCpuTime(), System.nanoTime()};
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
