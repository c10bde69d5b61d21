package org.tornadomoe.checkpoint.weights;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class PackedIntsTest {
    private static final int BEHIND = 99;

    private static byte[] random(int bytes) {
        byte[] data = new byte[bytes];
        new Random(bytes).nextBytes(data);
        return data;
    }

    /** Values of 2, 4 and 8 bits lie one behind the other, lower bits first; rows begin at any byte. */
    @ParameterizedTest
    @CsvSource({"2, 0, 16", "2, 1, 7", "2, 3, 2", "4, 0, 16", "4, 1, 8", "4, 3, 11", "4, 5, 1", "8, 1, 5"})
    void aRowOfUnsignedValues(int bits, int from, int length) {
        byte[] data = random(32);
        byte[] into = new byte[2 + length + 2];
        into[2 + length] = BEHIND;
        PackedInts.unsignedRow(MemorySegment.ofArray(data), from, bits, into, 2, length);
        for (int i = 0; i < length; i++) {
            int bit = i * bits;
            int unsigned = ((data[from + bit / 8] & 0xff) >> (bit % 8)) & ((1 << bits) - 1);
            assertThat(into[2 + i]).isEqualTo((byte) (unsigned - (1 << (bits - 1))));
        }
        assertThat(into[2 + length]).as("behind the row").isEqualTo((byte) BEHIND);
    }

    /** Of AWQ's words, in which several rows are: rows at once are what they are one by one. */
    @ParameterizedTest
    @CsvSource({
        "4, 0, 8, 16, false, 0",
        "4, 8, 16, 8, false, 0",
        "4, 0, 4, 16, false, 0",
        "4, 4, 8, 16, false, 0",
        "4, 0, 8, 12, false, 0",
        "8, 0, 8, 16, false, 0",
        "4, 8, 16, 8, true, 0",
        "4, 8, 16, 8, true, -2004318072",
        "4, 8, 16, 8, false, -2004318072",
    })
    void rowsOfAwqAtOnce(int bits, int first, int count, int cols, boolean inOrder, int flip) {
        int rows = 32;
        MemorySegment data = MemorySegment.ofArray(random(rows * 16 * bits / 8));
        PackedInts.AwqRows all = new PackedInts.AwqRows(data, rows, cols, bits, inOrder, flip);
        byte[] atOnce = new byte[count * cols];
        all.read(first, count, cols, atOnce);
        byte[] one = new byte[cols];
        for (int row = 0; row < count; row++) {
            all.read(first + row, one, 0);
            for (int c = 0; c < cols; c++) {
                assertThat(atOnce[row * cols + c]).isEqualTo(one[c]);
            }
        }
    }
}
