package org.tornadomoe.bench;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
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
 * What loading the first MoE layer of a checkpoint takes, in processor and wall time: reading and decoding to int8,
 * then packing for the cores. {@code LoadTimes CHECKPOINT ROUNDS}; the checkpoint, a directory or a GGUF file, has this
 * one layer. GB a second are those of the file and those of the int8 weights that come of it.
 */
public final class LoadTimes {
    private LoadTimes() {}

    public static void main(String[] args) {
        Path checkpoint = Path.of(args[0]);
        long bytes = bytes(checkpoint);
        for (int round = 0; round < Integer.parseInt(args[1]); round++) {
            try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint)) {
                ExpertWeights weights = opened.layer(opened.moeLayers().getFirst());
                Int8Quantization quantization = weights.quantization();
                long[] start = now();
                try (Int8Experts experts = QuantizedWeights.int8(weights, quantization, Progress.NONE)) {
                    long[] read = now();
                    MoeOptions options = MoeOptions.DEFAULT.withBackend("cpu").withQuantization(quantization);
                    try (MoeLayer layer = MoeLayer.of(experts, options)) {
                        long[] packed = now();
                        System.out.printf(
                                Locale.ROOT,
                                "%s: read %.2f s (processor %.2f), packed %.2f s (%.2f), %.2f GB/s, %.2f of int8, %s%n",
                                quantization,
                                (read[1] - start[1]) / 1e9,
                                (read[0] - start[0]) / 1e9,
                                (packed[1] - read[1]) / 1e9,
                                (packed[0] - read[0]) / 1e9,
                                bytes / (double) (packed[1] - start[1]),
                                experts.bytes() / (double) (packed[1] - start[1]),
                                layer.kernelClass());
                    }
                }
            }
        }
    }

    /** The process's processor time, and the time, in nanoseconds. */
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
