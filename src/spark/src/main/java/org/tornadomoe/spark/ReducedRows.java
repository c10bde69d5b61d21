package org.tornadomoe.spark;

import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Objects;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.jspecify.annotations.Nullable;

/**
 * Computes rows with their outputs from (id, owner, number of the row's owners, sum, row), ordered by id and owner. The
 * row itself comes first, as owner {@link #ROW}, then each owner's sum. The sums are added in double, in the order of
 * owners.
 */
final class ReducedRows implements Iterator<Row> {
    /** Lower than any owner. */
    static final int ROW = -1;

    private final Iterator<Row> parts;
    private final int column;
    private @Nullable Row next;

    /** @param column the input column's index in the row */
    ReducedRows(Iterator<Row> parts, int column) {
        this.parts = parts;
        this.column = column;
        next = following();
    }

    private @Nullable Row following() {
        return parts.hasNext() ? parts.next() : null;
    }

    @Override
    public boolean hasNext() {
        return next != null;
    }

    @Override
    public Row next() {
        Row head = next;
        if (head == null) {
            throw new NoSuchElementException();
        }
        Object id = head.get(0);
        if (head.getInt(1) != ROW) {
            throw changed(id, "outputs of no row");
        }
        Row row = head.getStruct(4);
        double[] total = null;
        int expected = -1;
        int count = 0;
        int last = ROW;
        for (next = following(); next != null && Objects.deepEquals(next.get(0), id); next = following()) {
            int owner = next.getInt(1);
            if (owner == ROW) {
                throw new IllegalArgumentException("id: expected another value in each row, got " + id + " again");
            }
            if (owner <= last || (expected >= 0 && next.getInt(2) != expected)) {
                throw changed(id, "other outputs of owner " + owner);
            }
            last = owner;
            expected = next.getInt(2);
            count++;
            float[] part = SentToken.floats(next.getAs(3));
            if (total == null) {
                total = new double[part.length];
            }
            for (int c = 0; c < part.length; c++) {
                total[c] += part[c];
            }
        }
        if (row.isNullAt(column) ? count > 0 : count != expected) {
            throw changed(id, count + " owners' outputs");
        }
        Object[] values = new Object[row.size() + 1];
        for (int i = 0; i < row.size(); i++) {
            values[i] = row.get(i);
        }
        if (total != null) {
            float[] output = new float[total.length];
            for (int c = 0; c < output.length; c++) {
                output[c] = (float) total[c];
            }
            values[row.size()] = output;
        }
        return RowFactory.create(values);
    }

    private static IllegalStateException changed(Object id, String got) {
        return new IllegalStateException(
                "id " + id + ": expected the same hidden state whenever the rows are read, got " + got
                        + "; persist or checkpoint the rows if they differ each time");
    }
}
