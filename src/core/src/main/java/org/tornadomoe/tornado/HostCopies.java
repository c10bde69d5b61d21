package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.atomic.AtomicInteger;
import org.jspecify.annotations.Nullable;

/**
 * Copies between a caller's memory and a layer's, in pieces that the caller's thread and the common pool's threads
 * share: a core copies some 8 GB/s, and a link to a GPU carries 50. The caller doesn't wait for a thread that has not
 * started. After {@link #close} no piece is being copied, and none will be.
 */
final class HostCopies implements AutoCloseable {
    /** Up to this many bytes a second thread isn't worthwhile. */
    static final long LEAST = 256 << 10;

    private static final long MOST = 1 << 20;

    /** The number of pieces of a large copy. */
    private static final long PIECES = 16;

    private static final long PAGE = 4096;

    /** A thread that may not access memory confined to its caller's thread. */
    private static final Thread ANOTHER = Thread.ofPlatform().unstarted(() -> {});

    private static final int SPINS = 1000;

    private final boolean isShared;
    private final List<Piece> pieces = new ArrayList<>();

    /** @param callers the caller's memory, which other threads may not be allowed to access */
    HostCopies(MemorySegment... callers) {
        boolean all = ForkJoinPool.getCommonPoolParallelism() > 1;
        for (MemorySegment memory : callers) {
            all &= memory.isAccessibleBy(ANOTHER);
        }
        isShared = all;
    }

    /** The size of a piece, for a copy of that many bytes. */
    static long pieceOf(long bytes) {
        return Math.clamp(Math.ceilDiv(bytes, PIECES * PAGE) * PAGE, LEAST, MOST);
    }

    /** Copies all bytes at once. */
    static void copy(MemorySegment from, MemorySegment to, long bytes) {
        long piece = pieceOf(bytes);
        if (bytes <= piece) {
            MemorySegment.copy(from, 0, to, 0, bytes);
            return;
        }
        try (HostCopies copies = new HostCopies(from, to)) {
            List<Piece> pieces = copies.pieces(from, to, 0, bytes, piece);
            pieces.forEach(Piece::begin);
            pieces.forEach(Piece::await);
        }
    }

    /**
     * The pieces of the bytes from {@code begin} to {@code end}, the same offsets in both memories; not begun yet.
     *
     * @param piece bytes of each piece except the last
     */
    List<Piece> pieces(MemorySegment from, MemorySegment to, long begin, long end, long piece) {
        List<Piece> some = new ArrayList<>();
        for (long at = begin; at < end; at += piece) {
            some.add(new Piece(from, to, at, Math.min(piece, end - at), pieces.size() + some.size()));
        }
        pieces.addAll(some);
        return some;
    }

    /** Ends all copies, whatever their state. */
    @Override
    public void close() {
        pieces.forEach(Piece::giveUp);
    }

    /** Bytes that one thread copies. */
    final class Piece implements Runnable {
        private static final int OPEN = 0;
        private static final int TAKEN = 1;
        private static final int DONE = 2;

        private final MemorySegment from;
        private final MemorySegment to;
        private final long at;
        private final long bytes;
        private final int number;
        private final AtomicInteger state = new AtomicInteger();
        private @Nullable Throwable failure;

        private Piece(MemorySegment from, MemorySegment to, long at, long bytes, int number) {
            this.from = from;
            this.to = to;
            this.at = at;
            this.bytes = bytes;
            this.number = number;
        }

        MemorySegment from() {
            return from;
        }

        MemorySegment to() {
            return to;
        }

        /** Its offset in both memories. */
        long at() {
            return at;
        }

        long bytes() {
            return bytes;
        }

        /** Its number among all pieces of these copies. */
        int number() {
            return number;
        }

        /** Allows it to be copied from now on. */
        void begin() {
            if (isShared) {
                ForkJoinPool.commonPool().execute(this);
            }
        }

        @Override
        public void run() {
            if (state.compareAndSet(OPEN, TAKEN)) {
                try {
                    MemorySegment.copy(from, at, to, at, bytes);
                } catch (RuntimeException | Error thrown) {
                    failure = thrown;
                } finally {
                    state.set(DONE);
                }
            }
        }

        /** Waits until some thread has copied it. */
        void await() {
            run();
            awaitDone();
            if (failure instanceof Error error) {
                throw error;
            }
            if (failure != null) {
                throw (RuntimeException) failure;
            }
        }

        private void giveUp() {
            if (!state.compareAndSet(OPEN, DONE)) {
                awaitDone();
            }
        }

        /** Waits for another core that is copying it, which takes some microseconds. */
        @SuppressWarnings("ThreadPriorityCheck") // with more threads than cores, the copying thread needs one
        private void awaitDone() {
            for (int spin = 0; state.get() != DONE; spin++) {
                if (spin < SPINS) {
                    Thread.onSpinWait();
                } else {
                    Thread.yield();
                }
            }
        }
    }
}
