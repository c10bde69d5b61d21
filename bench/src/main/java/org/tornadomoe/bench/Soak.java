package org.tornadomoe.bench;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.management.ManagementFactory;
import java.nio.channels.ClosedChannelException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.concurrent.CancellationException;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.atomic.LongAdder;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Function;
import java.util.function.ToLongFunction;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.management.JMException;
import javax.management.ObjectName;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.LaneException;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.CheckpointException;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RouterWeights;
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
    private static final int SLOTS = 2;
    private static final int RANK = 8;

    /** The states of a slot: empty, or one of two adapters. */
    private static final int STATES = 3;

    private static final int QUESTIONS = 8;
    private static final int FEWEST_ROUNDS = 6;

    /** Longer than anything that threads do. */
    private static final Duration STUCK = Duration.ofMinutes(5);

    private static final float CANARY = 12345.678f;

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

    private final LongAdder calls = new LongAdder();
    private final LongAdder refused = new LongAdder();
    private final LongAdder interrupts = new LongAdder();
    private final LongAdder loads = new LongAdder();
    private final LongAdder changes = new LongAdder();
    private final AtomicReference<@Nullable String> wrong = new AtomicReference<>();
    private final List<Sample> samples = new ArrayList<>();
    private volatile boolean stop;

    /** What a faulty program would keep for each layer that it has loaded. */
    private enum Leak {
        HEAP(() -> new byte[1 << 20]),
        MEMORY(() -> Arena.global().allocate(1 << 20)),
        THREADS(() -> Stream.generate(() -> Thread.ofPlatform().daemon().start(LockSupport::park))
                .limit(8)
                .toList()),
        DESCRIPTORS(() -> Files.newByteChannel(Path.of(System.getProperty("java.home"), "release"))),
        /** The layer itself isn't closed. */
        LAYERS(Object::new);

        private static final List<Object> KEPT = new ArrayList<>();

        private final Callable<Object> one;

        Leak(Callable<Object> one) {
            this.one = one;
        }

        void add() {
            try {
                Object more = one.call();
                synchronized (KEPT) {
                    KEPT.add(more);
                }
            } catch (Exception failure) {
                throw new IllegalStateException(failure);
            }
        }
    }

    private Soak() {}

    /** See {@code --help}. */
    public static void main(String[] args) {
        System.exit(new CommandLine(new Soak())
                .setCaseInsensitiveEnumValuesAllowed(true)
                .execute(args));
    }

    // ---- the layers that are called

    /**
     * A layer that can be loaded any number of times.
     *
     * @param load loads it with options
     * @param stays whether it stays open from the first round to the last; otherwise it is closed and loaded anew
     *     repeatedly
     */
    private record Kind(String name, Function<MoeOptions, MoeLayer> load, MoeOptions options, boolean stays) {
        MoeLayer open() {
            return load.apply(options);
        }

        boolean adapts() {
            return options.maxLoras() > 0;
        }
    }

    /** Random weights, normally distributed. */
    private record Weights(FusedMoeConfig config, long seed) implements ExpertWeights {
        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            fill(into, new SplittableRandom(seed + 4_001L * expert + 2L * row), Math.sqrt(2.0 / into.length));
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            fill(into, new SplittableRandom(seed + 4_001L * expert + 2L * row + 1), Math.sqrt(2.0 / into.length));
        }

        @Override
        public RouterWeights router() {
            SplittableRandom random = new SplittableRandom(seed - 1);
            float[] bias = config.router().hasCorrectionBias() ? new float[config.numChoices()] : null;
            if (bias != null) {
                fill(bias, random, 0.3);
            }
            float[] weight = new float[config.numChoices() * config.hiddenDim()];
            fill(weight, random, 1);
            return new RouterWeights(weight, null, bias, null);
        }
    }

    private static void fill(float[] into, SplittableRandom random, double deviation) {
        for (int i = 0; i < into.length; i++) {
            into[i] = (float) (random.nextGaussian() * deviation);
        }
    }

    private List<Kind> kinds() {
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend(backend)
                .withDevices(devices)
                .withKernelClass(kernel)
                .withMaxTokens(tokens);
        MoeOptions adapting = options.withLora(SLOTS, RANK);
        RouterConfig grouped = RouterConfig.of(ScoringFunction.SIGMOID, true)
                .withCorrectionBias()
                .withGroups(4, 2)
                .withRoutedScalingFactor(2.5);
        List<Kind> kinds = new ArrayList<>(List.of(
                kind(Int8Scheme.W8A8_CHANNEL, layer(8, 2, 96, 64), options.withLanes(2), true),
                kind(Int8Scheme.W8A8_CHANNEL, layer(6, 2, 64, 48), adapting.withLanes(2), false),
                kind(
                        Int8Scheme.W8A8_CHANNEL,
                        layer(6, 3, 80, 40).activation(MoeActivation.SWIGLUOAI).swigluLimit(7.0),
                        options.withHiddenType(ScalarType.F16),
                        false),
                kind(
                        Int8Scheme.W8A8_TENSOR,
                        layer(16, 4, 128, 32).router(grouped).numFusedSharedExperts(1),
                        options.withLaneWait(Duration.ofMillis(1)),
                        true),
                kind(
                        Int8Scheme.W8A8_BLOCK,
                        layer(5, 1, 264, 136),
                        options.withHiddenType(ScalarType.BF16).withLanes(3),
                        false),
                kind(Int8Scheme.W8A16_CHANNEL, layer(4, 2, 70, 33), options.withLaneWait(Duration.ZERO), false),
                kind(Int8Scheme.W8A16_GROUP, layer(7, 2, 132, 64), adapting, true)));
        for (Path checkpoint : checkpoints) {
            kinds.add(new Kind(
                    checkpoint.toString(), its -> MoeLayer.load(checkpoint, 0, its), options.withLanes(2), false));
        }
        kinds.removeIf(kind -> !kind.name.contains(only));
        return kinds;
    }

    private static FusedMoeConfig.Builder layer(int experts, int topK, int hidden, int intermediate) {
        return FusedMoeConfig.builder()
                .numExperts(experts)
                .expertsPerToken(topK)
                .hiddenDim(hidden)
                .intermediateSize(intermediate);
    }

    private Kind kind(Int8Scheme scheme, FusedMoeConfig.Builder layer, MoeOptions options, boolean stays) {
        FusedMoeConfig config = layer.build();
        Weights weights = new Weights(config, seed * 1_000_003);
        String name = scheme + " " + config.numExperts() + ":" + config.intermediateSize() + ":" + config.hiddenDim()
                + ":" + config.expertsPerToken() + " " + options.hiddenType().abbreviation()
                + (options.maxLoras() > 0 ? " with adapters" : "");
        return new Kind(name, its -> MoeLayer.of(weights, its), options.withScheme(scheme), stays);
    }

    private LoraAdapter adapter(FusedMoeConfig config, int number) {
        int e = config.globalNumExperts();
        int h = config.hiddenDim();
        int i = config.intermediateSizePerPartition();
        int rank = RANK / (number + 1);
        SplittableRandom random = new SplittableRandom(seed - 10 - number);
        float[] w13A = new float[e * LoraAdapter.slices(config) * rank * h];
        float[] w13B = new float[e * config.gateUpRows() * rank];
        float[] w2A = new float[e * rank * i];
        float[] w2B = new float[h * rank]; // shared by all experts
        fill(w13A, random, Math.sqrt(1.0 / h));
        fill(w13B, random, Math.sqrt(1.0 / rank));
        fill(w2A, random, Math.sqrt(1.0 / i));
        fill(w2B, random, Math.sqrt(1.0 / rank));
        return LoraAdapter.of(rank, rank, w13A, w13B, w2A, w2B);
    }

    /**
     * Hidden states, and the outputs that one thread got for them.
     *
     * @param hidden [M, H], values of the layer's type
     * @param slots the slot of each token's adapter; null for a call without adapters
     * @param answers [states of all slots][M, H]; only one if there are no slots
     */
    private record Question(
            int tokens, float[] hidden, int @Nullable [] slots, float[][] answers, ChosenExperts chosen) {}

    /** A layer that all threads call. */
    private final class Shared {
        final Kind kind;
        List<Question> questions = List.of();
        volatile MoeLayer layer;

        /**
         * Odd while an adapter or the layer changes. If it is the same before and after a call, the call has seen
         * {@link #states}.
         */
        volatile int version;

        /** The active state of each slot, 0 for none, as a number in base {@value #STATES}. */
        volatile int states;

        private final int[] held = new int[SLOTS];

        Shared(Kind kind) {
            this.kind = kind;
            layer = kind.open();
        }

        /** Computes the outputs with this thread's own layer. */
        void ask(SplittableRandom random) {
            List<Question> asked = new ArrayList<>();
            try (MoeLayer own = kind.open()) {
                FusedMoeConfig config = own.config();
                while (asked.size() < QUESTIONS) {
                    // Small and large numbers of tokens are equally frequent.
                    int m = (int) Math.exp(random.nextDouble() * Math.log(tokens + 1));
                    float[] hidden = new float[m * config.hiddenDim()];
                    fill(hidden, random, 1);
                    for (int v = 0; v < hidden.length && config.inDtype() != ScalarType.F32; v++) {
                        hidden[v] =
                                HiddenStates.widen(config.inDtype(), HiddenStates.narrow(config.inDtype(), hidden[v]));
                    }
                    int[] slots = !kind.adapts() || random.nextInt(4) == 0
                            ? null
                            : IntStream.range(0, m)
                                    .map(_ -> random.nextInt(-1, SLOTS))
                                    .toArray();
                    int combinations = slots == null ? 1 : STATES * STATES;
                    Question question = new Question(
                            m,
                            hidden,
                            slots,
                            new float[combinations][hidden.length],
                            ChosenExperts.allocate(m, config.pairsPerToken()));
                    for (int states = 0; states < combinations; states++) {
                        for (int slot = 0; slot < SLOTS && slots != null; slot++) {
                            put(own, slot, state(states, slot));
                        }
                        call(own, question, question.answers[states], question.chosen);
                    }
                    asked.add(question);
                }
            }
            questions = asked;
        }

        private static int state(int states, int slot) {
            return slot == 0 ? states % STATES : states / STATES;
        }

        private void put(MoeLayer into, int slot, int state) {
            if (state == 0) {
                into.removeAdapter(slot);
            } else {
                into.setAdapter(slot, adapter(into.config(), state - 1));
            }
        }

        /** Changes a slot's adapter, or switches it off or on; one thread at a time. */
        synchronized void change(SplittableRandom random) {
            int slot = random.nextInt(SLOTS);
            int state = random.nextInt(STATES);
            version++;
            try {
                if (held[slot] > 0 && random.nextBoolean()) {
                    boolean on = random.nextBoolean();
                    layer.enableAdapter(slot, on);
                    state = on ? held[slot] : 0;
                } else {
                    put(layer, slot, state);
                    held[slot] = state;
                }
                int other = state(states, 1 - slot);
                states = slot == 0 ? state + STATES * other : other + STATES * state;
                changes.increment();
            } finally {
                version++;
            }
        }

        /** Replaces the layer; calls of the old one finish or throw because it is closed. */
        synchronized void reload() {
            MoeLayer old = layer;
            MoeLayer fresh;
            try {
                fresh = kind.open();
            } catch (CancellationException _) {
                refused.increment();
                return;
            } catch (CheckpointException unread) {
                if (!(unread.getCause() instanceof ClosedChannelException)) {
                    throw unread;
                }
                refused.increment();
                return;
            }
            version++;
            Arrays.fill(held, 0);
            states = 0;
            layer = fresh;
            version++;
            leaks.forEach(Leak::add);
            if (!leaks.contains(Leak.LAYERS)) {
                old.close();
            }
            loads.increment();
        }

        void call(SplittableRandom random) {
            Question question = questions.get(random.nextInt(questions.size()));
            int before = version;
            int seen = states;
            MoeLayer called = layer;
            float[] output = new float[question.hidden.length + 1];
            output[question.hidden.length] = CANARY;
            ChosenExperts chosen =
                    random.nextBoolean() ? ChosenExperts.allocate(question.tokens, question.chosen.topK()) : null;
            try {
                if (question.slots == null && random.nextBoolean()) {
                    callNatively(called, question, output, chosen);
                } else {
                    call(called, question, output, chosen);
                }
            } catch (LaneException _) {
                refused.increment();
                return;
            } catch (IllegalStateException closed) {
                if (called == layer || !"the layer is closed".equals(closed.getMessage())) {
                    throw closed;
                }
                refused.increment();
                return;
            }
            calls.increment();
            boolean known = version == before && before % 2 == 0;
            check(question, output, chosen, known ? seen : -1);
        }

        private void call(MoeLayer called, Question question, float[] output, @Nullable ChosenExperts chosen) {
            if (question.slots == null) {
                called.forward(question.hidden, question.tokens, output, chosen);
            } else {
                called.forward(question.hidden, question.tokens, output, chosen, question.slots);
            }
        }

        private void callNatively(MoeLayer called, Question question, float[] output, @Nullable ChosenExperts chosen) {
            ScalarType type = called.config().inDtype();
            int count = question.hidden.length;
            try (Arena arena = Arena.ofConfined()) {
                MemorySegment in = arena.allocate((long) type.bytes() * count);
                MemorySegment out = arena.allocate((long) type.bytes() * count);
                HiddenStates.write(type, question.hidden, count, in);
                called.forward(in, question.tokens, out, chosen);
                HiddenStates.read(type, out, output, count);
            }
        }

        /** @param states the states that the call has seen; −1 if unknown */
        private void check(Question question, float[] output, @Nullable ChosenExperts chosen, int states) {
            int count = question.hidden.length;
            boolean right = question.slots == null
                    ? equal(output, question.answers[0], count)
                    : states >= 0
                            ? equal(output, question.answers[states], count)
                            : Stream.of(question.answers).anyMatch(answer -> equal(output, answer, count));
            String what = !right
                    ? "other bits than one thread got"
                            + (question.slots == null || states >= 0
                                    ? difference(question, output, question.slots == null ? 0 : states)
                                    : "")
                    : output[count] != CANARY
                            ? "a value written behind the output"
                            : chosen != null
                                            && !(Arrays.equals(chosen.ids(), question.chosen.ids())
                                                    && Arrays.equals(chosen.weights(), question.chosen.weights()))
                                    ? "other experts or weights than one thread got"
                                    : null;
            if (what != null) {
                fail(kind.name + ", a call of " + question.tokens + " tokens"
                        + (question.slots == null ? "" : ", adapters in state " + states) + ": " + what);
            }
        }

        /**
         * Describes the differences: the first one's position, their number, and whether the output matches another
         * state of the slots.
         */
        private static String difference(Question question, float[] output, int states) {
            float[] expected = question.answers[states];
            int first = Arrays.mismatch(output, 0, expected.length, expected, 0, expected.length);
            long all = IntStream.range(0, expected.length)
                    .filter(v -> Float.compare(output[v], expected[v]) != 0)
                    .count();
            int token = first / (expected.length / question.tokens);
            List<Integer> others = IntStream.range(0, question.answers.length)
                    .filter(other -> equal(output, question.answers[other], expected.length))
                    .boxed()
                    .toList();
            return " in " + all + " of " + expected.length + " values, first of token " + token
                    + (question.slots == null ? "" : " with slot " + question.slots[token]) + ": expected "
                    + expected[first] + ", got " + output[first]
                    + (others.isEmpty() ? "" : "; right for adapters in state " + others);
        }

        private static boolean equal(float[] got, float[] expected, int count) {
            return Arrays.mismatch(got, 0, count, expected, 0, count) < 0;
        }
    }

    // ---- the threads

    private void fail(String reason) {
        wrong.compareAndSet(null, reason);
        stop = true;
    }

    private void work(List<Shared> layers, SplittableRandom random) {
        try {
            while (!stop) {
                Shared shared = layers.get(random.nextInt(layers.size()));
                int what = random.nextInt(100);
                if (what == 0 && !shared.kind.stays) {
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
            fail(Thread.currentThread().getName() + ": " + thrown);
        }
    }

    /** @return whether everything succeeded */
    private boolean round(List<Shared> layers, SplittableRandom random, Duration length) throws InterruptedException {
        stop = false;
        List<Thread> workers = new ArrayList<>();
        for (int t = 0; t < threads; t++) {
            SplittableRandom own = random.split();
            Thread.Builder builder = t % 2 == 0 ? Thread.ofPlatform() : Thread.ofVirtual();
            workers.add(builder.name("soak-" + t).start(() -> work(layers, own)));
        }
        long end = System.nanoTime() + length.toNanos();
        while (!stop && System.nanoTime() < end) {
            Thread.sleep(random.nextInt(1, 20));
            workers.get(random.nextInt(threads)).interrupt();
            interrupts.increment();
        }
        stop = true;
        for (Thread worker : workers) {
            if (!worker.join(STUCK)) {
                Thread.getAllStackTraces()
                        .forEach((thread, stack) -> System.err.println(thread + "\n    "
                                + String.join(
                                        "\n    ",
                                        Stream.of(stack).map(Object::toString).toList())));
                fail(worker.getName() + " is stuck for " + STUCK.toMinutes() + " minutes");
                return false;
            }
        }
        return wrong.get() == null;
    }

    @Override
    public Integer call() throws IOException, InterruptedException {
        SplittableRandom random = new SplittableRandom(seed);
        long nanos = (long) (minutes * 60e9);
        long end = System.nanoTime() + nanos;
        Duration length = Duration.ofNanos(Math.min(60_000_000_000L, nanos / FEWEST_ROUNDS));
        List<Shared> layers = new ArrayList<>();
        for (Kind kind : kinds()) {
            try {
                layers.add(new Shared(kind));
                System.out.println(kind.name + ": " + layers.getLast().layer.kernelClass() + " on "
                        + layers.getLast().layer.device());
            } catch (UnsupportedOperationException refusal) {
                System.out.println(kind.name + ": left out: "
                        + refusal.getMessage().lines().findFirst().orElse(""));
            }
        }
        if (layers.isEmpty()) {
            System.out.println("nothing to call");
            return 1;
        }
        for (int round = 1; round <= FEWEST_ROUNDS || System.nanoTime() < end; round++) {
            for (Shared shared : layers) {
                if (round > 1 && !shared.kind.stays) {
                    shared.reload();
                }
                shared.ask(random.split());
            }
            Duration left = Duration.ofNanos(end - System.nanoTime());
            if (!round(layers, random.split(), round > FEWEST_ROUNDS && left.compareTo(length) < 0 ? left : length)) {
                System.out.println("WRONG: " + wrong.get());
                return 1;
            }
            samples.add(Sample.take());
            System.out.println(line(round));
        }
        layers.forEach(shared -> shared.layer.close());
        List<Limit> known = LIMITS.stream().filter(this::isKnown).toList();
        List<String> grown =
                known.stream().map(this::growth).flatMap(Optional::stream).toList();
        grown.forEach(line -> System.out.println("GROWN: " + line));
        System.out.println("the same bits in every call; " + (grown.isEmpty() ? "nothing" : grown.size()) + " grew of "
                + known.stream().map(Limit::name).collect(Collectors.joining(", ")));
        return grown.isEmpty() ? 0 : 1;
    }

    private String line(int round) {
        return String.format(
                Locale.ROOT,
                "%d: %d calls, %d refused, %d interrupts, %d layers loaded, %d adapters changed; %s",
                round,
                calls.sumThenReset(),
                refused.sumThenReset(),
                interrupts.sumThenReset(),
                loads.sumThenReset(),
                changes.sumThenReset(),
                samples.getLast());
    }

    // ---- resources that must not grow

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
                String told = (String) ManagementFactory.getPlatformMBeanServer()
                        .invoke(
                                new ObjectName("com.sun.management:type=DiagnosticCommand"),
                                "vmNativeMemory",
                                new Object[] {new String[] {"summary", "scale=b"}},
                                new String[] {String[].class.getName()});
                Matcher other = OTHER.matcher(told);
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
                String told = new String(process.getInputStream().readAllBytes(), StandardCharsets.US_ASCII);
                return process.waitFor() != 0
                        ? UNKNOWN
                        : told.lines()
                                .mapToLong(line -> Long.parseLong(line.strip()))
                                .sum();
            } catch (IOException none) {
                return UNKNOWN;
            }
        }

        @Override
        public String toString() {
            return Stream.of(
                            told("heap %.1f MB", heap, 1e6),
                            told("off it %.1f MB", off, 1e6),
                            told("resident %.0f MB", resident, 1e6),
                            told("%.0f threads", threads, 1),
                            told("%.0f descriptors", files, 1),
                            told("%.0f mapped files", mapped, 1),
                            told("device %.0f MiB", device, 1))
                    .flatMap(Optional::stream)
                    .collect(Collectors.joining(", "));
        }

        private static Optional<String> told(String format, long value, double unit) {
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
