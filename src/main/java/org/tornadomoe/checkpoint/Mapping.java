package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;

/** Maps files. */
final class Mapping {
    private Mapping() {}

    /**
     * {@link FileChannel#map}, read-only, on a thread that nobody interrupts: an interrupt just after the file was
     * mapped makes that throw, and the mapping stays until the process ends (JDK 25). The caller's interrupts are kept.
     *
     * @param arena a shared one
     */
    static MemorySegment readOnly(FileChannel channel, long size, Arena arena) throws IOException {
        FutureTask<MemorySegment> mapping =
                new FutureTask<>(() -> channel.map(FileChannel.MapMode.READ_ONLY, 0, size, arena));
        Thread.ofPlatform().name("moe-map").daemon().start(mapping);
        boolean interrupted = false;
        try {
            while (true) {
                try {
                    return mapping.get();
                } catch (InterruptedException e) {
                    interrupted = true;
                } catch (ExecutionException e) {
                    switch (e.getCause()) {
                        case IOException cause -> throw cause;
                        case RuntimeException cause -> throw cause;
                        case Error cause -> throw cause;
                        default -> throw new AssertionError(e);
                    }
                }
            }
        } finally {
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }
}
