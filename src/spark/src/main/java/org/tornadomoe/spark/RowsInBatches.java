package org.tornadomoe.spark;

import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Queue;
import org.apache.spark.sql.Row;

/** Rows computed from a partition's rows, in batches, on demand. */
abstract class RowsInBatches implements Iterator<Row> {
    /** The partition's rows. */
    final Iterator<Row> rows;

    private final Queue<Row> ready = new ArrayDeque<>();

    RowsInBatches(Iterator<Row> rows) {
        this.rows = rows;
    }

    /** Takes some of the partition's remaining rows (there is at least one) and adds the resulting rows, if any. */
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
