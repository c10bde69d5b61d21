package org.tornadomoe.spark;

import java.nio.file.Path;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.spark.TaskContext;
import org.apache.spark.TaskKilledException;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.kernel.ChosenExperts;

/**
 * A layer in this executor, or one owner's experts of a layer. A task uses it from {@link #acquire} to {@link
 * #release}; it stays loaded for later tasks of any job. Thread-safe.
 */
final class Engine {
    /** @param owned null for all experts */
    private record Key(
            MoeScorer scorer,
            @Nullable String address,
            @Nullable Owned owned) {}

    /** The experts of one owner, by its number, under a partitioning. */
    private record Owned(TokenRouter.Owners owners, int owner) {}

    /** Engines that are loaded or being loaded, the least recently used first; also serves as the lock. */
    private static final Map<Key, Engine> KEPT = new LinkedHashMap<>(16, 0.75f, true);

    /** The interval at which a waiting task checks whether it was killed. */
    private static final long MILLIS = 500;

    private static final AtomicInteger LOADS = new AtomicInteger();

    /** The routing for the current call of a layer with handed-in routing. */
    private static final ThreadLocal<@Nullable ChosenExperts> HANDED = new ThreadLocal<>();

    private final Key key;
    private final CheckpointFiles files;

    /** Null before it is loaded, and if loading failed. */
    private volatile @Nullable MoeLayer layer;

    /** The number of rows per call; one task's experience serves the next. */
    private volatile int batch = 1;

    /** The number of tasks that use it; guarded by {@link #KEPT}, like the next field. */
    private int users;

    /** Whether its files changed while it was in use; then the last task closes it. */
    private boolean stale;

    private Engine(Key key, CheckpointFiles files) {
        this.key = key;
        this.files = files;
    }

    /**
     * Acquires the layer on a GPU, until {@link #release}. The first task that asks loads it while others wait; it is
     * loaded anew if its files have changed. If loading fails, the task fails, and the next task tries again.
     */
    static Engine acquire(MoeScorer scorer, @Nullable String address) {
        return acquire(new Key(shared(scorer), address, null), Integer.MAX_VALUE);
    }

    /**
     * Acquires an owner's experts in the same way. If {@code plan.held()} owners' experts are loaded, an unused one is
     * evicted, or the task waits for one.
     */
    static Engine acquire(ExpertParallelScorer plan, int owner, @Nullable String address) {
        return acquire(new Key(shared(plan.scorer()), address, new Owned(plan.partitioning(), owner)), plan.held());
    }

    /** Scorers that differ only in columns and latency share a layer. */
    static MoeScorer shared(MoeScorer scorer) {
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

    private static Engine acquire(Key key, int held) {
        Path path = Path.of(key.scorer.checkpoint());
        Engine engine;
        synchronized (KEPT) {
            CheckpointFiles files = CheckpointFiles.of(path);
            while (!makeRoom(key, files, held)) {
                await(key);
                files = CheckpointFiles.of(path);
            }
            CheckpointFiles now = files;
            engine = KEPT.computeIfAbsent(key, asked -> new Engine(asked, now));
            engine.users++;
        }
        try {
            engine.load();
            return engine;
        } catch (Throwable failure) {
            engine.release();
            throw failure;
        }
    }

    /** Whether it is loaded, or there is room for it after evicting as many unused engines as needed. */
    private static boolean makeRoom(Key key, CheckpointFiles files, int held) {
        Engine there = KEPT.get(key);
        if (there != null && !there.files.equals(files)) {
            if (there.users > 0 && key.owned != null) {
                return false;
            }
            KEPT.remove(key);
            there.stale = true;
            there.closeUnused();
            there = null;
        }
        if (there != null || key.owned == null) {
            return true;
        }
        long owned = KEPT.keySet().stream().filter(kept -> kept.owned != null).count();
        var engines = KEPT.values().iterator();
        while (owned >= held && engines.hasNext()) {
            Engine engine = engines.next();
            if (engine.key.owned != null && engine.users == 0) {
                engines.remove();
                engine.closeUnused();
                owned--;
            }
        }
        return owned < held;
    }

    private static void await(Key key) {
        TaskContext task = TaskContext.get();
        if (task != null && task.isInterrupted()) {
            throw new TaskKilledException("killed while waiting for " + key.owned);
        }
        try {
            KEPT.wait(MILLIS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("interrupted while waiting for " + key.owned, e);
        }
    }

    private void closeUnused() {
        MoeLayer loaded = layer;
        if (users == 0 && loaded != null) {
            loaded.close();
        }
    }

    private synchronized void load() {
        if (layer == null) {
            layer = key.owned == null ? loadAll() : loadOwned(key.owned);
            LOADS.incrementAndGet();
        }
    }

    private MoeLayer loadAll() {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Path.of(key.scorer.checkpoint()))) {
            return MoeLayer.of(TokenRouter.layer(checkpoint, key.scorer.layer()), options());
        }
    }

    private MoeOptions options() {
        return MoeOptions.DEFAULT
                .withScheme(key.scorer.scheme())
                .withBackend(key.scorer.backend())
                .withDevice(key.scorer.deviceAt(key.address))
                .withMaxTokens(key.scorer.maxTokens());
    }

    private MoeLayer loadOwned(Owned owned) {
        MoeScorer scorer = key.scorer;
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Path.of(scorer.checkpoint()))) {
            TokenRouter router = TokenRouter.of(scorer, owned.owners);
            MoeOptions options = options()
                    .withMaxTokens(scorer.maxTokens() * router.tokensPerRow(owned.owner))
                    .withRouter((hidden, logits, count, topK, renormalize) -> {
                        ChosenExperts handed = HANDED.get();
                        if (handed == null) {
                            throw new IllegalStateException("router: expected routing from the caller, got none");
                        }
                        return handed;
                    });
            return MoeLayer.of(checkpoint.experts(scorer.layer(), router.expertsOf(owned.owner)), options);
        }
    }

    /** Ends a task's use. The last user removes an engine that was not loaded or is stale. */
    void release() {
        synchronized (KEPT) {
            users--;
            if (users == 0 && layer == null) {
                KEPT.remove(key, this);
            }
            if (stale) {
                closeUnused();
            }
            KEPT.notifyAll();
        }
    }

    /** Unloads all engines that no task uses; returns their number. */
    static int unload() {
        synchronized (KEPT) {
            int before = KEPT.size();
            KEPT.values().removeIf(engine -> {
                engine.closeUnused();
                return engine.users == 0;
            });
            return before - KEPT.size();
        }
    }

    /** Runs a layer with handed-in routing. */
    void forward(float[] hidden, int tokens, float[] output, ChosenExperts routing) {
        HANDED.set(routing);
        try {
            layer().forward(hidden, tokens, output, null);
        } finally {
            HANDED.remove();
        }
    }

    /** The layer of an acquired engine. */
    MoeLayer layer() {
        return Objects.requireNonNull(layer);
    }

    int batch() {
        return batch;
    }

    /**
     * Adapts the batch to a call's time: halves it if the call took too long, doubles it if it took less than half the
     * allowed time.
     */
    void took(long nanos, int rows, long allowed) {
        if (nanos > allowed) {
            batch = Math.max(1, rows / 2);
        } else if (nanos < allowed / 2 && rows >= batch) {
            batch = Math.min(2 * rows, key.scorer.maxTokens());
        }
    }

    /**
     * The engines loaded in this JVM: for each GPU address, or "none", the kernel class and its device; an owner's
     * experts have the key "OWNER@ADDRESS".
     */
    static Map<String, String> loaded() {
        Map<String, String> loaded = new TreeMap<>();
        synchronized (KEPT) {
            KEPT.forEach((key, engine) -> {
                MoeLayer layer = engine.layer;
                if (layer != null) {
                    String address = key.address == null ? "none" : key.address;
                    loaded.put(
                            key.owned == null ? address : key.owned.owner + "@" + address,
                            layer.kernelClass() + " on " + layer.device());
                }
            });
        }
        return loaded;
    }

    /** The owners of a plan whose experts are loaded in this JVM. */
    static Set<Integer> owners(ExpertParallelScorer plan) {
        MoeScorer scorer = shared(plan.scorer());
        Set<Integer> loaded = new TreeSet<>();
        synchronized (KEPT) {
            KEPT.forEach((key, engine) -> {
                Owned owned = key.owned;
                if (owned != null
                        && engine.layer != null
                        && owned.owners.equals(plan.partitioning())
                        && key.scorer.equals(scorer)) {
                    loaded.add(owned.owner);
                }
            });
        }
        return loaded;
    }

    /** The number of loads of layers and owners' experts in this JVM so far. */
    static int loads() {
        return LOADS.get();
    }
}
