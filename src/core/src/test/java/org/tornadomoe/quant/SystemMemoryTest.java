package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assumptions.assumeThat;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class SystemMemoryTest {
    private static final long LARGE = (4 << 20) + 12;

    @ParameterizedTest
    @ValueSource(longs = {100, LARGE})
    void zerosThatMayBeWrittenUntilTheArenaIsClosed(long bytes) {
        MemorySegment memory;
        try (Arena arena = Arena.ofShared()) {
            memory = SystemMemory.allocate(arena, bytes, 64);
            assertThat(memory.byteSize()).isEqualTo(bytes);
            assertThat(memory.address() % 64).isZero();
            assertThat(memory.mismatch(MemorySegment.ofArray(new byte[(int) bytes])))
                    .isEqualTo(-1);
            memory.set(ValueLayout.JAVA_BYTE, bytes - 1, (byte) 7);
            assertThat(memory.get(ValueLayout.JAVA_BYTE, bytes - 1)).isEqualTo((byte) 7);
            assertThatExceptionOfType(IndexOutOfBoundsException.class)
                    .isThrownBy(() -> memory.get(ValueLayout.JAVA_BYTE, bytes));
        }
        assertThatExceptionOfType(IllegalStateException.class).isThrownBy(() -> memory.get(ValueLayout.JAVA_BYTE, 0));
    }

    @Test
    void whatTheSystemGivesIsGivenBackAndHasALimit() {
        assumeThat(SystemMemory.limit()).as("native access").isPositive();
        long before = SystemMemory.taken();
        try (Arena arena = Arena.ofShared()) {
            SystemMemory.allocate(arena, LARGE, 64);
            assertThat(SystemMemory.taken()).isEqualTo(before + LARGE);
            long more = SystemMemory.limit() - before;
            assertThatExceptionOfType(OutOfMemoryError.class)
                    .isThrownBy(() -> SystemMemory.allocate(arena, more, 64))
                    .withMessage("cannot reserve " + more + " bytes: " + (before + LARGE) + " of "
                            + SystemMemory.limit() + " are taken");
            assertThat(SystemMemory.taken()).isEqualTo(before + LARGE);
        }
        assertThat(SystemMemory.taken()).isEqualTo(before);
    }

    /** Memory of arrays that nothing refers to any more doesn't count against the limit. */
    @Test
    void whatTheCollectorMayFreeIsFreedBeforeTheLimitIsReached() {
        assumeThat(SystemMemory.limit()).as("native access").isPositive();
        long half = SystemMemory.limit() / 2;
        for (int i = 0; i < 5; i++) {
            assertThat(SystemMemory.allocate(Arena.ofAuto(), half, 64).byteSize())
                    .isEqualTo(half);
        }
    }

    @Test
    void beyondTheLimitTheArenasMayHaveRoom() {
        assumeThat(SystemMemory.limit()).as("native access").isPositive();
        long before = SystemMemory.taken();
        try (Arena arena = Arena.ofShared()) {
            SystemMemory.allocateWithinLimit(arena, LARGE, 64);
            assertThat(SystemMemory.taken()).isEqualTo(before + LARGE);
            SystemMemory.allocate(arena, SystemMemory.limit() - before - LARGE, 64);
            MemorySegment more = SystemMemory.allocateWithinLimit(arena, LARGE, 4096);
            assertThat(SystemMemory.taken()).isEqualTo(SystemMemory.limit());
            assertThat(more.byteSize()).isEqualTo(LARGE);
            assertThat(more.address() % 4096).isZero();
        }
        assertThat(SystemMemory.taken()).isEqualTo(before);
    }

    @Test
    void aClosedArenaTakesNothing() {
        long before = SystemMemory.taken();
        Arena arena = Arena.ofShared();
        arena.close();
        assertThatExceptionOfType(IllegalStateException.class)
                .isThrownBy(() -> SystemMemory.allocate(arena, LARGE, 64));
        assertThat(SystemMemory.taken()).isEqualTo(before);
    }

    @ParameterizedTest
    @CsvSource({"5, 5", "3k, 3072", "512m, 536870912", "2G, 2147483648", "1T, 1099511627776"})
    void sizesAreReadAsTheJvmReadsThem(String option, long bytes) {
        assertThat(SystemMemory.bytes(option)).isEqualTo(bytes);
    }
}
