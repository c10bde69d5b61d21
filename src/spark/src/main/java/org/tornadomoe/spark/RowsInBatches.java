package org.tornadomoe.spark;

import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Queue;
import org.apache.spark.sql.Row;

/** What is made of a partition's rows, some at a time as it is asked for. */
abstract class RowsInBatches implements Iterator<Row> {
    /** The partition's. */
    final Iterator<Row> rows;

    private final Queue<Row> ready = new ArrayDeque<>();

    RowsInBatches(Iterator<Row> rows) {
        this.rows = rows;
    }

    /** Takes some of the partition's rows, of which there are more, and says what comes of them, if anything does. */
    abstract void more();

    final void ready(Row row) {
        ready.add(row);
    }

    @Override
    public final boolean hasNext() {
        while (ready.isEmpty() && rows.hasNext()) {
            more();
        }
        return !ready.isEmpty();
    }

    @Override
    public final Row next() {
        if (!hasNext()) {
            throw new NoSuchElementException();
        }
        return ready.remove();
    }
}
