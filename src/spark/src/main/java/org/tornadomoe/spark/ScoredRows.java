package org.tornadomoe.spark;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;

/** The rows of a partition with their outputs, computed in batches, on demand. */
final class ScoredRows extends RowsInBatches {
    private final int column;
    private final Engine engine;
    private final long allowed;

    ScoredRows(Iterator<Row> rows, int column, Engine engine, long allowed) {
        super(rows);
        this.column = column;
        this.engine = engine;
        this.allowed = allowed;
    }

    @Override
    void more() {
        int h = engine.layer().config().hiddenDim();
        int most = engine.batch();
        List<Row> batch = new ArrayList<>(most);
        float[] hidden = new float[most * h];
        int tokens = 0;
        while (batch.size() < most && rows.hasNext()) {
            Row row = rows.next();
            batch.add(row);
            if (!row.isNullAt(column)) {
                fill(row, column, hidden, tokens++ * h, h);
            }
        }
        float[] output = new float[tokens * h];
        if (tokens > 0) {
            long start = System.nanoTime();
            engine.layer().forward(hidden, tokens, output, null);
            engine.took(System.nanoTime() - start, tokens, allowed);
        }
        int token = 0;
        for (Row row : batch) {
            Object[] values = new Object[row.size() + 1];
            for (int i = 0; i < row.size(); i++) {
                values[i] = row.get(i);
            }
            if (!row.isNullAt(column)) {
                float[] mine = new float[h];
                System.arraycopy(output, token++ * h, mine, 0, h);
                values[row.size()] = mine;
            }
            ready(RowFactory.create(values));
        }
    }

    /** Reads a row's hidden state: an array if the row comes directly from the program, a sequence if Spark made it. */
    static void fill(Row row, int column, float[] into, int at, int h) {
        if (row.get(column) instanceof float[] values) {
            requireWidth(values.length, h);
            System.arraycopy(values, 0, into, at, h);
            return;
        }
        List<Float> values = row.getList(column);
        requireWidth(values.size(), h);
        int i = at;
        for (Float value : values) {
            if (value == null) {
                throw new IllegalArgumentException("input: expected values, got null in place " + (i - at));
            }
            into[i++] = value;
        }
    }

    private static void requireWidth(int got, int h) {
        if (got != h) {
            throw new IllegalArgumentException(
                    "input: expected rows of " + h + " values (the layer's hidden size), got one of " + got);
        }
    }
}
