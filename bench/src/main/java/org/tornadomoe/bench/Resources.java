package org.tornadomoe.bench;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.function.ToLongFunction;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.management.JMException;
import javax.management.ObjectName;

/** The process's resources, measured again and again while nothing runs, and by how much they may grow. */
final class Resources {
    private static final long UNKNOWN = -1;

    /**
     * The process's resources while nothing runs.
     *
     * @param heap bytes in use after collections
     * @param off off-heap bytes that Java code allocated, if the JVM tracks them ({@code
     *     -XX:NativeMemoryTracking=summary}); else {@link #UNKNOWN}
     * @param resident resident bytes, where there is {@code /proc}; else {@link #UNKNOWN}, as {@code files} and
     *     {@code mapped}
     * @param files open file descriptors
     * @param mapped regions of mapped files, without the JVM's and the system's libraries
     * @param device MiB of memory in use on the NVIDIA devices that CUDA may see ({@code CUDA_VISIBLE_DEVICES}), by
     *     whatever process; {@link #UNKNOWN} without any
     */
    private record Sample(long heap, long off, long resident, long threads, long files, long mapped, long device) {
        private static final Pattern OTHER = Pattern.compile("Other \\(reserved=\\d+, committed=(\\d+)\\)");

        static Sample take() throws IOException, InterruptedException {
            for (int i = 0; i < 3; i++) {
                System.gc();
                Thread.sleep(50);
            }
            Runtime runtime = Runtime.getRuntime();
            return new Sample(
                    runtime.totalMemory() - runtime.freeMemory(),
                    offHeap(),
                    residentBytes(),
                    ManagementFactory.getThreadMXBean().getThreadCount(),
                    count(Path.of("/proc/self/fd")),
                    mappedFiles(),
                    deviceMemory());
        }

        private static long offHeap() {
            try {
                String answer = (String) ManagementFactory.getPlatformMBeanServer()
                        .invoke(
                                new ObjectName("com.sun.management:type=DiagnosticCommand"),
                                "vmNativeMemory",
                                new Object[] {new String[] {"summary", "scale=b"}},
                                new String[] {String[].class.getName()});
                Matcher other = OTHER.matcher(answer);
                return other.find() ? Long.parseLong(other.group(1)) : UNKNOWN;
            } catch (JMException unsupported) {
                return UNKNOWN;
            }
        }

        private static long residentBytes() throws IOException {
            Path status = Path.of("/proc/self/status");
            if (!Files.exists(status)) {
                return UNKNOWN;
            }
            return Files.readAllLines(status).stream()
                    .filter(line -> line.startsWith("VmRSS:"))
                    .mapToLong(line -> 1024 * Long.parseLong(line.replaceAll("\\D", "")))
                    .sum();
        }

        private static long count(Path directory) throws IOException {
            if (!Files.isDirectory(directory)) {
                return UNKNOWN;
            }
            try (Stream<Path> files = Files.list(directory)) {
                return files.count();
            }
        }

        private static long mappedFiles() throws IOException {
            Path maps = Path.of("/proc/self/maps");
            if (!Files.exists(maps)) {
                return UNKNOWN;
            }
            return Files.readAllLines(maps).stream()
                    .filter(line -> line.contains(" /") && line.matches(".*\\.(safetensors|gguf|json)( .*)?"))
                    .count();
        }

        private static long deviceMemory() throws InterruptedException {
            List<String> command =
                    new ArrayList<>(List.of("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"));
            String visible = System.getenv("CUDA_VISIBLE_DEVICES");
            if (visible != null && !visible.isBlank()) {
                command.add("--id=" + visible);
            }
            try {
                Process process = new ProcessBuilder(command).start();
                String answer = new String(process.getInputStream().readAllBytes(), StandardCharsets.US_ASCII);
                return process.waitFor() != 0
                        ? UNKNOWN
                        : answer.lines()
                                .mapToLong(line -> Long.parseLong(line.strip()))
                                .sum();
            } catch (IOException none) {
                return UNKNOWN;
            }
        }

        @Override
        public String toString() {
            return Stream.of(
                            shown("heap %.1f MB", heap, 1e6),
                            shown("off it %.1f MB", off, 1e6),
                            shown("resident %.0f MB", resident, 1e6),
                            shown("%.0f threads", threads, 1),
                            shown("%.0f descriptors", files, 1),
                            shown("%.0f mapped files", mapped, 1),
                            shown("device %.0f MiB", device, 1))
                    .flatMap(Optional::stream)
                    .collect(Collectors.joining(", "));
        }

        private static Optional<String> shown(String format, long value, double unit) {
            return value == UNKNOWN ? Optional.empty() : Optional.of(String.format(Locale.ROOT, format, value / unit));
        }
    }

    /**
     * The growth allowed between two thirds of a run: an absolute amount plus a fraction of the earlier value. Small
     * enough that one object left by each layer loaded is too much, at some hundred layers.
     */
    private record Limit(String name, ToLongFunction<Sample> what, long most, double part) {}

    private static final List<Limit> LIMITS = List.of(
            new Limit("heap", Sample::heap, 4_000_000, 0.02),
            new Limit("memory off the heap", Sample::off, 1_000_000, 0),
            new Limit("resident memory", Sample::resident, 32_000_000, 0.05),
            new Limit("threads", Sample::threads, Runtime.getRuntime().availableProcessors(), 0),
            new Limit("descriptors", Sample::files, 2, 0),
            new Limit("mapped files", Sample::mapped, 1, 0),
            new Limit("MiB of device memory", Sample::device, 16, 0));

    private final List<Sample> samples = new ArrayList<>();

    /** Measures them once more. */
    void measure() throws IOException, InterruptedException {
        samples.add(Sample.take());
    }

    /** The last measurement, on one line. */
    @Override
    public String toString() {
        return samples.getLast().toString();
    }

    /** The names of those that can be measured here. */
    List<String> known() {
        return LIMITS.stream().filter(this::isKnown).map(Limit::name).toList();
    }

    /** A line about each that has grown by more than its limit. */
    List<String> grown() {
        return LIMITS.stream()
                .filter(this::isKnown)
                .map(this::growth)
                .flatMap(Optional::stream)
                .toList();
    }

    private boolean isKnown(Limit limit) {
        return samples.stream().noneMatch(sample -> limit.what.applyAsLong(sample) == UNKNOWN);
    }

    /**
     * Compares the medians of the last third of the rounds with those of the third before it; by then compilation and
     * caches have settled.
     */
    private Optional<String> growth(Limit limit) {
        long before = median(limit.what, samples.size() / 3, samples.size() * 2 / 3);
        long after = median(limit.what, samples.size() * 2 / 3, samples.size());
        return after - before > limit.most + limit.part * before
                ? Optional.of(limit.name + ": from " + before + " to " + after)
                : Optional.empty();
    }

    private long median(ToLongFunction<Sample> what, int from, int to) {
        long[] sorted =
                samples.subList(from, to).stream().mapToLong(what).sorted().toArray();
        return sorted[sorted.length / 2];
    }
}
