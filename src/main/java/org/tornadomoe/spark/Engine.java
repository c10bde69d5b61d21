package org.tornadomoe.spark;

import java.nio.file.Path;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.modular.ChosenExperts;

/** A layer loaded in this executor, or an owner's experts of one. Thread-safe. */
final class Engine {
    private record Key(MoeScorer scorer, @Nullable String address) {}

    /** Experts by their owner's number, of as many owners as the ids are dealt to. */
    private record OwnedKey(MoeScorer scorer, @Nullable String address, TokenRouter.Owners owners, int owner) {}

    private static final ConcurrentHashMap<Key, Engine> ENGINES = new ConcurrentHashMap<>();

    /** Those of owners, the one that was longest not asked for first; its own lock. */
    private static final Map<OwnedKey, Engine> OWNED = new LinkedHashMap<>(16, 0.75f, true);

    /** What a layer that is handed its routing is handed. */
    private static final ThreadLocal<@Nullable ChosenExperts> HANDED = new ThreadLocal<>();

    private final MoeLayer layer;

    /** The most rows of a call. */
    private final int most;

    /** Rows that a call is to take: what was learnt by one task serves the next. */
    private volatile int batch = 1;

    /** Tasks that use it; of owners' engines alone, under their lock. */
    private int users;

    private Engine(MoeLayer layer, int most) {
        this.layer = layer;
        this.most = most;
    }

    /**
     * The engine of a GPU, loaded by the first task that asks, while others wait. A failure to load is the task's, and the next one
     * tries again.
     */
    static Engine of(MoeScorer scorer, @Nullable String address) {
        return ENGINES.computeIfAbsent(new Key(shared(scorer), address), Engine::load);
    }

    /** Columns and latency are the caller's affair: they share a layer. */
    private static MoeScorer shared(MoeScorer scorer) {
        return new MoeScorer(
                scorer.checkpoint(),
                scorer.layer(),
                "",
                "",
                scorer.scheme(),
                scorer.backend(),
                scorer.device(),
                scorer.maxTokens(),
                Duration.ofDays(1));
    }

    private static Engine load(Key key) {
        MoeScorer scorer = key.scorer;
        return new Engine(
                MoeLayer.load(Path.of(scorer.checkpoint()), scorer.layer(), options(scorer, key.address)),
                scorer.maxTokens());
    }

    private static MoeOptions options(MoeScorer scorer, @Nullable String address) {
        return MoeOptions.DEFAULT
                .withScheme(scorer.scheme())
                .withBackend(scorer.backend())
                .withDevice(scorer.deviceAt(address))
                .withMaxTokens(scorer.maxTokens());
    }

    /**
     * The engine of an owner's experts, to be given back by {@link #release}. Where {@code plan.held()} are loaded, one that no task uses gives
     * way, or the task waits for one.
     */
    static Engine acquire(ExpertParallelScorer plan, int owner, @Nullable String address) throws InterruptedException {
        OwnedKey key = new OwnedKey(shared(plan.scorer()), address, plan.dealt(), owner);
        synchronized (OWNED) {
            while (!OWNED.containsKey(key) && !makeRoom(plan.held())) {
                OWNED.wait();
            }
            Engine engine = OWNED.get(key);
            if (engine == null) {
                engine = load(key);
                OWNED.put(key, engine);
            }
            engine.users++;
            return engine;
        }
    }

    /** Whether there is room for one more, after those that nobody uses have gone as far as needed. */
    private static boolean makeRoom(int held) {
        var engines = OWNED.values().iterator();
        while (OWNED.size() >= held && engines.hasNext()) {
            Engine engine = engines.next();
            if (engine.users == 0) {
                engines.remove();
                engine.layer.close();
            }
        }
        return OWNED.size() < held;
    }

    private static Engine load(OwnedKey key) {
        MoeScorer scorer = key.scorer;
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Path.of(scorer.checkpoint()))) {
            TokenRouter router = TokenRouter.of(scorer, key.owners);
            int tokens = scorer.maxTokens() * router.tokensPerRow(key.owner);
            MoeOptions options = options(scorer, key.address)
                    .withMaxTokens(tokens)
                    .withRouter((hidden, logits, count, topK, renormalize) -> {
                        ChosenExperts handed = HANDED.get();
                        if (handed == null) {
                            throw new IllegalStateException("router: expected routing to be handed in, got none");
                        }
                        return handed;
                    });
            return new Engine(
                    MoeLayer.of(checkpoint.experts(scorer.layer(), router.expertsOf(key.owner)), options),
                    scorer.maxTokens());
        }
    }

    void release() {
        synchronized (OWNED) {
            users--;
            OWNED.notifyAll();
        }
    }

    /** Runs a layer that is handed its routing. */
    void forward(float[] hidden, int tokens, float[] output, ChosenExperts routing) {
        HANDED.set(routing);
        try {
            layer.forward(hidden, tokens, output, null);
        } finally {
            HANDED.remove();
        }
    }

    MoeLayer layer() {
        return layer;
    }

    int batch() {
        return batch;
    }

    /** Learns from a call: half as many rows if it took too long, twice as many if it took less than half of what it may. */
    void took(long nanos, int rows, long allowed) {
        if (nanos > allowed) {
            batch = Math.max(1, rows / 2);
        } else if (nanos < allowed / 2 && rows >= batch) {
            batch = Math.min(2 * rows, most);
        }
    }

    /** What is loaded in this JVM: for each GPU address, or "none", the kernel class and where it runs. */
    static Map<String, String> loaded() {
        Map<String, String> loaded = new TreeMap<>();
        ENGINES.forEach((key, engine) -> loaded.put(named(key.address), engine.name()));
        return loaded;
    }

    /** The owners whose experts are loaded in this JVM, "OWNER@ADDRESS", and what holds them. */
    static Map<String, String> owned() {
        Map<String, String> loaded = new TreeMap<>();
        synchronized (OWNED) {
            OWNED.forEach((key, engine) -> loaded.put(key.owner + "@" + named(key.address), engine.name()));
        }
        return loaded;
    }

    private static String named(@Nullable String address) {
        return address == null ? "none" : address;
    }

    private String name() {
        return layer.kernelClass() + " on " + layer.device();
    }
}
