package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.Arrays;

/**
 * The numbers that an index stands for in ggml's types of 1 to 3 bits, some neighbours at once: a table a type, part of
 * the format as its block sizes are. The resource {@code ggml-codebooks.bin} holds them one after the other, a number a
 * byte.
 */
enum GgmlCodebook {
    /** In eighths of a scale, as the next two. */
    IQ2_XXS(256, 8),
    IQ2_XS(512, 8),
    IQ2_S(1024, 8),
    /** In quarters of a scale. */
    IQ3_XXS(256, 4),
    IQ3_S(512, 4),
    /** -1, 0 and 1; of IQ1_S and IQ1_M. */
    IQ1(2048, 8);

    private static final String RESOURCE = "ggml-codebooks.bin";

    static {
        try (InputStream in = GgmlCodebook.class.getResourceAsStream(RESOURCE)) {
            if (in == null) {
                throw new IllegalStateException("the library lacks its resource " + RESOURCE);
            }
            byte[] all = in.readAllBytes();
            int at = 0;
            for (GgmlCodebook book : values()) {
                book.numbers = Arrays.copyOfRange(all, at, at += book.entries * book.width);
            }
            if (at != all.length) {
                throw new IllegalStateException(RESOURCE + ": expected " + at + " bytes, got " + all.length);
            }
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    private final int entries;

    /** Numbers of an index. */
    private final int width;

    @SuppressWarnings("ImmutableEnumChecker") // isn't changed once it is here
    private byte[] numbers = {};

    GgmlCodebook(int entries, int width) {
        this.entries = entries;
        this.width = width;
    }

    /**
     * Writes an index' numbers.
     *
     * @param signs bit i for the i-th number that is negative
     */
    void put(int index, int signs, byte[] into, int to) {
        for (int i = 0; i < width; i++) {
            int number = numbers[index * width + i];
            into[to + i] = (byte) ((signs >> i & 1) == 0 ? number : -number);
        }
    }

    /** Writes an index' numbers times a factor, and one more. */
    void put(int index, int factor, int more, byte[] into, int to) {
        for (int i = 0; i < width; i++) {
            into[to + i] = (byte) (factor * numbers[index * width + i] + more);
        }
    }
}
