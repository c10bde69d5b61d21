package org.tornadomoe.bench;

import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.locks.LockSupport;
import java.util.stream.Stream;

/** What a faulty program would keep for each layer that it has loaded. */
enum Leak {
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
