package org.tornadomoe.quant;

import java.util.stream.IntStream;

/**
 * The int8 values of a tensor, where they are stored, which may be a mapped file: they are read an expert at a time
 * when they are needed, or all at once. Thread-safe.
 */
public final class UnreadValues {
    /** Reads values. Called from many threads. */
    public interface Source {
        /** Reads an expert's values into the only expert of a tensor with as many rows and columns. */
        void read(int expert, Int8Tensor into);

        /** Reads a row's values into {@code into[at]} and following. */
        void row(int expert, int row, byte[] into, int at);
    }

    private final Source source;
    private final int first;
    private volatile boolean read;

    /** @param first the expert of the source that is the tensor's first */
    UnreadValues(Source source, int first) {
        this.source = source;
        this.first = first;
    }

    UnreadValues from(int expert) {
        return new UnreadValues(source, first + expert);
    }

    boolean isRead() {
        return read;
    }

    void read(int expert, Int8Tensor into) {
        source.read(first + expert, into);
    }

    void row(int expert, int row, byte[] into, int at) {
        source.row(first + expert, row, into, at);
    }

    /** Reads all experts into a tensor's own memory, once. */
    synchronized void readAll(Int8Tensor tensor) {
        if (!read) {
            IntStream.range(0, tensor.experts()).parallel().forEach(e -> read(e, tensor.ofOne(e)));
            read = true;
        }
    }
}
