package org.tornadomoe.bench;

import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.atomic.LongAdder;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.bench.SoakLayers.Kind;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/**
 * Calls layers from several threads, half of them virtual, for any length of time: with random sizes, from arrays and
 * from native memory, with and without adapters. Meanwhile threads are interrupted, adapters change, and layers are
 * closed and loaded anew. Each call must give the bits that one thread got earlier from its own layer. Once a minute,
 * when all threads have finished, it measures the heap, off-heap memory, threads and open files, which must not grow.
 * Exit status 0, or 1 with the reason.
 */
@Command(
        name = "soak",
        description = "Calls layers from many threads for a time; says if a bit differs or anything grows.",
        mixinStandardHelpOptions = true)
public final class Soak implements Callable<Integer> {
    private static final int FEWEST_ROUNDS = 6;

    /** Longer than anything that threads do. */
    private static final Duration STUCK = Duration.ofMinutes(5);

    @Option(names = "--minutes", defaultValue = "1", description = "How long; default ${DEFAULT-VALUE}.")
    double minutes = 1;

    @Option(names = "--threads", defaultValue = "8", description = "Calling threads; default ${DEFAULT-VALUE}.")
    int threads = 8;

    @Option(names = "--tokens", defaultValue = "96", description = "Most tokens of a call; default ${DEFAULT-VALUE}.")
    int tokens = 96;

    @Option(names = "--backend", defaultValue = "cpu", description = "As for moe; default ${DEFAULT-VALUE}.")
    String backend = "cpu";

    @Option(names = "--device", split = ",", description = "As for moe; several with commas between them.")
    List<String> devices = List.of();

    @Option(names = "--kernel", description = "As for moe.")
    @Nullable
    String kernel;

    @Option(names = "--seed", defaultValue = "1", description = "Of all that is random; default ${DEFAULT-VALUE}.")
    long seed = 1;

    @Option(
            names = "--checkpoint",
            description = "A checkpoint whose first layer is one of the layers; may be repeated.")
    List<Path> checkpoints = List.of();

    @Option(names = "--layers", description = "Only layers whose name, as printed, has this in it.")
    String only = "";

    @Option(
            names = "--leak",
            split = ",",
            description = "Leak these with each layer loaded, to see that it is noticed: ${COMPLETION-CANDIDATES}.")
    List<Leak> leaks = List.of();

    final Tally tally = new Tally();
    private final Resources resources = new Resources();

    /** What the threads have done since the last line, and what went wrong. */
    static final class Tally {
        final LongAdder calls = new LongAdder();
        final LongAdder refused = new LongAdder();
        final LongAdder interrupts = new LongAdder();
        final LongAdder loads = new LongAdder();
        final LongAdder changes = new LongAdder();
        private final AtomicReference<@Nullable String> wrong = new AtomicReference<>();
        private volatile boolean stop;

        /** Ends the run; the first reason counts. */
        void fail(String reason) {
            wrong.compareAndSet(null, reason);
            stop = true;
        }
    }

    private Soak() {}

    /** See {@code --help}. */
    public static void main(String[] args) {
        System.exit(new CommandLine(new Soak())
                .setCaseInsensitiveEnumValuesAllowed(true)
                .execute(args));
    }

    private void work(List<SoakedLayer> layers, SplittableRandom random) {
        try {
            while (!tally.stop) {
                SoakedLayer shared = layers.get(random.nextInt(layers.size()));
                int what = random.nextInt(100);
                if (what == 0 && !shared.kind.stays()) {
                    shared.reload();
                } else if (what < 5 && shared.kind.adapts()) {
                    shared.change(random);
                } else {
                    shared.call(random);
                }
                // Before the next call, so that some calls are interrupted before they begin and some while they run.
                if (random.nextBoolean()) {
                    Thread.interrupted();
                }
            }
        } catch (RuntimeException | Error thrown) {
            thrown.printStackTrace();
            tally.fail(Thread.currentThread().getName() + ": " + thrown);
        }
    }

    /** @return whether everything succeeded */
    private boolean round(List<SoakedLayer> layers, SplittableRandom random, Duration length)
            throws InterruptedException {
        tally.stop = false;
        List<Thread> workers = new ArrayList<>();
        for (int t = 0; t < threads; t++) {
            SplittableRandom own = random.split();
            Thread.Builder builder = t % 2 == 0 ? Thread.ofPlatform() : Thread.ofVirtual();
            workers.add(builder.name("soak-" + t).start(() -> work(layers, own)));
        }
        long end = System.nanoTime() + length.toNanos();
        while (!tally.stop && System.nanoTime() < end) {
            Thread.sleep(random.nextInt(1, 20));
            workers.get(random.nextInt(threads)).interrupt();
            tally.interrupts.increment();
        }
        tally.stop = true;
        for (Thread worker : workers) {
            if (!worker.join(STUCK)) {
                Thread.getAllStackTraces()
                        .forEach((thread, stack) -> System.err.println(thread + "\n    "
                                + String.join(
                                        "\n    ",
                                        Stream.of(stack).map(Object::toString).toList())));
                tally.fail(worker.getName() + " is stuck for " + STUCK.toMinutes() + " minutes");
                return false;
            }
        }
        return tally.wrong.get() == null;
    }

    @Override
    public Integer call() throws IOException, InterruptedException {
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend(backend)
                .withDevices(devices)
                .withKernelClass(kernel)
                .withMaxTokens(tokens);
        SplittableRandom random = new SplittableRandom(seed);
        long nanos = (long) (minutes * 60e9);
        long end = System.nanoTime() + nanos;
        Duration length = Duration.ofNanos(Math.min(60_000_000_000L, nanos / FEWEST_ROUNDS));
        List<SoakedLayer> layers = new ArrayList<>();
        for (Kind kind : SoakLayers.kinds(options, seed, checkpoints, only)) {
            try {
                layers.add(new SoakedLayer(kind, this));
                System.out.println(kind.name() + ": " + layers.getLast().layer.kernelClass() + " on "
                        + layers.getLast().layer.device());
            } catch (UnsupportedOperationException refusal) {
                System.out.println(kind.name() + ": left out: "
                        + refusal.getMessage().lines().findFirst().orElse(""));
            }
        }
        if (layers.isEmpty()) {
            System.out.println("nothing to call");
            return 1;
        }
        for (int round = 1; round <= FEWEST_ROUNDS || System.nanoTime() < end; round++) {
            for (SoakedLayer shared : layers) {
                if (round > 1 && !shared.kind.stays()) {
                    shared.reload();
                }
                shared.ask(random.split());
            }
            Duration left = Duration.ofNanos(end - System.nanoTime());
            if (!round(layers, random.split(), round > FEWEST_ROUNDS && left.compareTo(length) < 0 ? left : length)) {
                System.out.println("WRONG: " + tally.wrong.get());
                return 1;
            }
            resources.measure();
            System.out.println(line(round));
        }
        layers.forEach(shared -> shared.layer.close());
        List<String> grown = resources.grown();
        grown.forEach(line -> System.out.println("GROWN: " + line));
        System.out.println("the same bits in every call; " + (grown.isEmpty() ? "nothing" : grown.size()) + " grew of "
                + String.join(", ", resources.known()));
        return grown.isEmpty() ? 0 : 1;
    }

    private String line(int round) {
        return String.format(
                Locale.ROOT,
                "%d: %d calls, %d refused, %d interrupts, %d layers loaded, %d adapters changed; %s",
                round,
                tally.calls.sumThenReset(),
                tally.refused.sumThenReset(),
                tally.interrupts.sumThenReset(),
                tally.loads.sumThenReset(),
                tally.changes.sumThenReset(),
                resources);
    }
}
