package org.tornadomoe.checkpoint.weights;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/**
 * Whole numbers of 2 to 8 bits in words of 32, the first in the lowest bits. Where bytes are filled with them, they are
 * held as value - 2^(bits - 1).
 */
final class PackedInts {
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    private static final VarHandle LONGS = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

    private PackedInts() {}

    /** The rows of GPTQ's words, which hold columns of one row; those of a row are {@code rows} words apart. */
    static Matrix.Int8.RowReader gptqRows(MemorySegment data, int rows, int cols, int bits) {
        if (bits == 4) {
            return new GptqRows(data, rows, cols);
        }
        int perWord = 32 / bits;
        int mask = (1 << bits) - 1;
        int middle = 1 << (bits - 1);
        return (row, into, to) -> {
            long at = 4L * row;
            for (int c = to; c < to + cols; at += 4L * rows) {
                int word = data.get(INT, at);
                for (int i = 0; i < perWord; i++, word >>>= bits) {
                    into[c++] = (byte) ((word & mask) - middle);
                }
            }
        };
    }

    /** Words of eight columns of 4 bits, those of a row {@code rows} words apart. */
    private record GptqRows(MemorySegment data, int rows, int cols) implements Matrix.Int8.RowReader {
        @Override
        public void read(int row, byte[] into, int to) {
            long at = 4L * row;
            for (int c = 0; c < cols; c += 8, at += 4L * rows) {
                LONGS.set(into, to + c, eightOf4Bits(data.get(INT, at)));
            }
        }

        @Override
        public void read(int first, int count, int cols, byte[] into) {
            int[] words = new int[count];
            for (int c = 0; c < cols; c += 8) {
                MemorySegment.copy(data, INT, 4L * (c / 8 * (long) rows + first), words, 0, count);
                for (int i = 0; i < count; i++) {
                    LONGS.set(into, i * cols + c, eightOf4Bits(words[i]));
                }
            }
        }
    }

    /**
     * AWQ's words, which hold a column of several rows; those of a column are one behind the other.
     *
     * @param inOrder whether rows are in order in a word; else the even ones come first
     * @param flip what the bits of a word are exchanged with: the highest of each number where those are signed
     */
    record AwqRows(MemorySegment data, int rows, int cols, int bits, boolean inOrder, int flip)
            implements Matrix.Int8.RowReader {
        @Override
        public void read(int row, byte[] into, int to) {
            int perWord = 32 / bits;
            int mask = (1 << bits) - 1;
            int middle = 1 << (bits - 1);
            int shift = bits * (inOrder ? row % perWord : awqPlace(row % perWord, perWord));
            long at = 4L * (row / perWord);
            long next = 4L * (rows / perWord);
            for (int c = to; c < to + cols; c++, at += next) {
                into[c] = (byte) (((data.get(INT, at) ^ flip) >>> shift & mask) - middle);
            }
        }

        /** Eight rows of eight columns are turned at once. */
        @Override
        public void read(int first, int count, int cols, byte[] into) {
            if (bits != 4 || count % 8 != 0 || first % 8 != 0 || cols % 8 != 0) {
                Matrix.Int8.RowReader.super.read(first, count, cols, into);
                return;
            }
            for (int i = 0; i < count; i += 8) {
                turn(first + i, cols, into, i * cols);
            }
        }

        private void turn(int first, int cols, byte[] into, int to) {
            long at = 4L * (first / 8);
            long next = 4L * (rows / 8);
            for (int c = 0; c < cols; c += 8, at += 8 * next) {
                long c0 = eightOf4Bits(data.get(INT, at) ^ flip);
                long c1 = eightOf4Bits(data.get(INT, at + next) ^ flip);
                long c2 = eightOf4Bits(data.get(INT, at + 2 * next) ^ flip);
                long c3 = eightOf4Bits(data.get(INT, at + 3 * next) ^ flip);
                long c4 = eightOf4Bits(data.get(INT, at + 4 * next) ^ flip);
                long c5 = eightOf4Bits(data.get(INT, at + 5 * next) ^ flip);
                long c6 = eightOf4Bits(data.get(INT, at + 6 * next) ^ flip);
                long c7 = eightOf4Bits(data.get(INT, at + 7 * next) ^ flip);
                // Halves, quarters, then bytes are exchanged: what each is of four, two, one columns.
                long a0 = lower(c0, c4, HALVES, 32);
                long a1 = lower(c1, c5, HALVES, 32);
                long a2 = lower(c2, c6, HALVES, 32);
                long a3 = lower(c3, c7, HALVES, 32);
                long a4 = upper(c0, c4, HALVES, 32);
                long a5 = upper(c1, c5, HALVES, 32);
                long a6 = upper(c2, c6, HALVES, 32);
                long a7 = upper(c3, c7, HALVES, 32);
                long b0 = lower(a0, a2, QUARTERS, 16);
                long b1 = lower(a1, a3, QUARTERS, 16);
                long b2 = upper(a0, a2, QUARTERS, 16);
                long b3 = upper(a1, a3, QUARTERS, 16);
                long b4 = lower(a4, a6, QUARTERS, 16);
                long b5 = lower(a5, a7, QUARTERS, 16);
                long b6 = upper(a4, a6, QUARTERS, 16);
                long b7 = upper(a5, a7, QUARTERS, 16);
                LONGS.set(into, to + c + row(0) * cols, lower(b0, b1, BYTES, 8));
                LONGS.set(into, to + c + row(1) * cols, upper(b0, b1, BYTES, 8));
                LONGS.set(into, to + c + row(2) * cols, lower(b2, b3, BYTES, 8));
                LONGS.set(into, to + c + row(3) * cols, upper(b2, b3, BYTES, 8));
                LONGS.set(into, to + c + row(4) * cols, lower(b4, b5, BYTES, 8));
                LONGS.set(into, to + c + row(5) * cols, upper(b4, b5, BYTES, 8));
                LONGS.set(into, to + c + row(6) * cols, lower(b6, b7, BYTES, 8));
                LONGS.set(into, to + c + row(7) * cols, upper(b6, b7, BYTES, 8));
            }
        }

        /** Of eight the row that stands there in a word. */
        private int row(int place) {
            return inOrder ? place : place < 4 ? 2 * place : 2 * place - 7;
        }

        /** The lower of each two parts, a's beside b's. */
        private static long lower(long a, long b, long mask, int bits) {
            return (a & mask) | (b & mask) << bits;
        }

        private static long upper(long a, long b, long mask, int bits) {
            return (a >>> bits & mask) | (b & ~mask);
        }

        private static final long HALVES = 0x0000_0000_ffff_ffffL;
        private static final long QUARTERS = 0x0000_ffff_0000_ffffL;
        private static final long BYTES = 0x00ff_00ff_00ff_00ffL;
    }

    /** Rows whose words hold eight columns of 4 bits; order and flipped bits as in {@link AwqRows}. */
    static Matrix.Int8.RowReader rowsInWords(MemorySegment data, int cols, boolean inOrder, int flip) {
        return (row, into, to) -> {
            long at = (long) row * (cols / 2);
            for (int c = 0; c < cols; c++) {
                int place = inOrder ? c % 8 : awqPlace(c % 8, 8);
                into[to + c] = (byte) ((((data.get(INT, at + c / 8 * 4L) ^ flip) >>> (4 * place)) & 15) - 8);
            }
        };
    }

    /**
     * Rows of bytes.
     *
     * @param transposed whether a column's lie one behind the other
     * @param flip what each one's bits are exchanged with
     */
    static Matrix.Int8.RowReader bytes(MemorySegment data, int rows, int cols, boolean transposed, int flip) {
        long down = transposed ? 1 : cols;
        long across = transposed ? rows : 1;
        return (row, into, to) -> {
            for (int c = 0; c < cols; c++) {
                into[to + c] = (byte) (data.get(ValueLayout.JAVA_BYTE, row * down + c * across) ^ flip);
            }
        };
    }

    /** Where in AWQ's word row i is: 0, 2, 4, 6 in its lower half, then 1, 3, 5, 7. */
    static int awqPlace(int i, int perWord) {
        return i % 2 == 0 ? i / 2 : perWord / 2 + i / 2;
    }

    /**
     * The i-th value of words that hold one behind the other, some across two words.
     *
     * @param first the first word
     * @param step from a word to the next
     */
    static int across(MemorySegment data, long first, int step, int i, int bits) {
        long bit = (long) i * bits;
        long word = first + (bit >>> 5) * step;
        int shift = (int) bit & 31;
        int value = data.get(INT, 4 * word) >>> shift;
        if (shift + bits > 32) {
            value |= data.get(INT, 4 * (word + step)) << (32 - shift);
        }
        return value & ((1 << bits) - 1);
    }

    /** The i-th value of a word. */
    static int unsigned(MemorySegment data, long word, int i, int bits) {
        return data.get(INT, 4 * word) >>> (i * bits) & ((1 << bits) - 1);
    }

    /** The eight values of 4 bits of a word, less 8, a byte each. */
    private static long eightOf4Bits(int word) {
        long apart = word & 0xffff_ffffL;
        apart = (apart | apart << 16) & 0x0000_ffff_0000_ffffL;
        apart = (apart | apart << 8) & 0x00ff_00ff_00ff_00ffL;
        apart = (apart | apart << 4) & 0x0f0f_0f0f_0f0f_0f0fL;
        return (apart + 0x7878_7878_7878_7878L) ^ 0x8080_8080_8080_8080L;
    }

    /** So many values from a byte on, one word after the other. */
    static void unsignedRow(MemorySegment data, long from, int bits, byte[] into, int to, int length) {
        if (bits == 8) {
            MemorySegment.copy(data, ValueLayout.JAVA_BYTE, from, into, to, length);
            for (int i = to; i < to + length; i++) {
                into[i] ^= (byte) 0x80;
            }
            return;
        }
        int mask = (1 << bits) - 1;
        int middle = 1 << (bits - 1);
        if (8 % bits != 0) { // as many as fit into a word
            int perWord = 32 / bits;
            for (int i = 0; i < length; i++) {
                into[to + i] = (byte) (unsigned(data, from / 4 + i / perWord, i % perWord, bits) - middle);
            }
            return;
        }
        int done = 0;
        for (; bits == 4 && done + 8 <= length; done += 8) {
            LONGS.set(into, to + done, eightOf4Bits(data.get(INT, from + done / 2)));
        }
        int perByte = 8 / bits;
        for (int i = done; i < length; i += perByte) {
            int several = data.get(ValueLayout.JAVA_BYTE, from + i / perByte);
            for (int j = 0; j < perByte && i + j < length; j++) {
                into[to + i + j] = (byte) ((several >> (j * bits) & mask) - middle);
            }
        }
    }
}
