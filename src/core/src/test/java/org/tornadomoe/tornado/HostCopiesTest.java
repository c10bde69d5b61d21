package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.tornado.HostCopies.Piece;

class HostCopiesTest {
    private static final int PIECE = 256 << 10;

    private static byte[] random(int size) {
        byte[] bytes = new byte[size];
        new Random(size).nextBytes(bytes);
        return bytes;
    }

    @ParameterizedTest
    @ValueSource(ints = {0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17, 20 << 20})
    void everyByteIsCopied(int size) {
        byte[] from = random(size);
        byte[] to = new byte[size];
        HostCopies.copy(MemorySegment.ofArray(from), MemorySegment.ofArray(to), size);
        assertThat(Arrays.mismatch(to, from)).isEqualTo(-1);
        try (Arena own = Arena.ofConfined()) {
            MemorySegment memory = own.allocate(Math.max(1, size), 1);
            HostCopies.copy(MemorySegment.ofArray(from), memory, size);
            assertThat(MemorySegment.ofArray(from).mismatch(memory.asSlice(0, size)))
                    .isEqualTo(-1);
        }
    }

    @Test
    void piecesLieOneBehindTheOther() {
        MemorySegment memory = MemorySegment.ofArray(new byte[1000]);
        try (HostCopies copies = new HostCopies(memory)) {
            assertThat(copies.pieces(memory, memory, 100, 100, 300)).isEmpty();
            List<Piece> pieces = copies.pieces(memory, memory, 100, 800, 300);
            assertThat(pieces).extracting(Piece::at).containsExactly(100L, 400L, 700L);
            assertThat(pieces).extracting(Piece::bytes).containsExactly(300L, 300L, 100L);
            assertThat(copies.pieces(memory, memory, 800, 900, 300))
                    .extracting(Piece::number)
                    .containsExactly(3);
        }
        assertThat(HostCopies.pieceOf(1)).isEqualTo(PIECE);
        assertThat(HostCopies.pieceOf(8 << 20)).isEqualTo(512 << 10);
        assertThat(HostCopies.pieceOf(1L << 40)).isEqualTo(1 << 20);
    }

    /** Nobody writes to the caller's memory when the call is over, whatever became of it. */
    @Test
    void nothingIsCopiedAfterItIsClosed() throws InterruptedException {
        for (int round = 0; round < 20; round++) {
            byte[] from = random(4 << 20);
            byte[] to = new byte[from.length];
            try (HostCopies copies = new HostCopies(MemorySegment.ofArray(to))) {
                List<Piece> pieces =
                        copies.pieces(MemorySegment.ofArray(from), MemorySegment.ofArray(to), 0, from.length, 64 << 10);
                pieces.forEach(Piece::begin);
                pieces.getFirst().await();
            }
            byte[] then = to.clone();
            Thread.sleep(2);
            assertThat(to).isEqualTo(then);
        }
    }

    @Test
    void whatACopyThrowsIsThrownToWhoWaits() {
        MemorySegment closed;
        try (Arena arena = Arena.ofShared()) {
            closed = arena.allocate(1 << 20);
        }
        assertThatThrownBy(() -> HostCopies.copy(closed, MemorySegment.ofArray(new byte[1 << 20]), 1 << 20))
                .isInstanceOf(IllegalStateException.class);
    }
}
