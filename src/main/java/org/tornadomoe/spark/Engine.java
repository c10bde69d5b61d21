package org.tornadomoe.spark;

import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;

/** A layer loaded in this executor. Thread-safe. */
final class Engine {
    private record Key(MoeScorer scorer, @Nullable String address) {}

    private static final ConcurrentHashMap<Key, Engine> ENGINES = new ConcurrentHashMap<>();

    private final MoeLayer layer;

    /** Rows that a call is to take: what was learnt by one task serves the next. */
    private volatile int batch = 1;

    private Engine(MoeLayer layer) {
        this.layer = layer;
    }

    /**
     * The engine of a GPU, loaded by the first task that asks, while others wait. A failure to load is the task's, and the next one
     * tries again.
     */
    static Engine of(MoeScorer scorer, @Nullable String address) {
        // Columns and latency are the caller's affair: they share a layer.
        MoeScorer what = new MoeScorer(
                scorer.checkpoint(),
                scorer.layer(),
                "",
                "",
                scorer.scheme(),
                scorer.backend(),
                scorer.device(),
                scorer.maxTokens(),
                Duration.ofDays(1));
        return ENGINES.computeIfAbsent(new Key(what, address), Engine::load);
    }

    private static Engine load(Key key) {
        MoeScorer scorer = key.scorer;
        MoeOptions options = MoeOptions.DEFAULT
                .withScheme(scorer.scheme())
                .withBackend(scorer.backend())
                .withDevice(scorer.deviceAt(key.address))
                .withMaxTokens(scorer.maxTokens());
        return new Engine(MoeLayer.load(Path.of(scorer.checkpoint()), scorer.layer(), options));
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
            batch = Math.min(2 * rows, layer.config().maxNumTokens());
        }
    }

    /** What is loaded in this JVM: for each GPU address, or "none", the kernel class and where it runs. */
    static Map<String, String> loaded() {
        Map<String, String> loaded = new TreeMap<>();
        ENGINES.forEach((key, engine) -> loaded.put(
                key.address == null ? "none" : key.address,
                engine.layer.kernelClass() + " on " + engine.layer.device()));
        return loaded;
    }
}
