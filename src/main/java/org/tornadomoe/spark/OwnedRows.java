package org.tornadomoe.spark;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.modular.ChosenExperts;

/**
 * What an owner's experts make of the rows that came to them: (id, owner, number of the row's owners, the sum of their weighted outputs),
 * computed some at a time. Holds the owner's engine from the first row until it is closed.
 */
final class OwnedRows extends RowsInBatches implements AutoCloseable {
    private final ExpertParallelScorer plan;
    private final @Nullable String address;
    private @Nullable Engine engine;
    private int owner;

    OwnedRows(Iterator<Row> rows, ExpertParallelScorer plan, @Nullable String address) {
        super(rows);
        this.plan = plan;
        this.address = address;
    }

    private Engine engineOf(int owner) {
        Engine mine = engine;
        if (mine == null) {
            try {
                mine = Engine.acquire(plan, owner, address);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
                throw new IllegalStateException("interrupted while waiting for the experts of owner " + owner, e);
            }
            this.owner = owner;
            engine = mine;
        }
        if (owner != this.owner) {
            throw new IllegalStateException(
                    "expected rows of owner " + this.owner + " alone in its partition, got one of " + owner);
        }
        return mine;
    }

    @Override
    void more() {
        Row first = rows.next();
        Engine engine = engineOf(first.getInt(1));
        TokenRouter router = TokenRouter.of(plan.scorer(), plan.dealt());
        int h = router.hiddenDim();
        int pairs = router.pairsPerRow(owner);
        int perRow = router.tokensPerRow(owner);
        int most = engine.batch();
        List<Row> batch = new ArrayList<>(most);
        float[] hidden = new float[most * perRow * h];
        int[] ids = new int[most * pairs];
        float[] weights = new float[most * pairs];
        Arrays.fill(ids, -1);
        for (Row row = first; row != null; row = batch.size() < most && rows.hasNext() ? rows.next() : null) {
            engineOf(row.getInt(1));
            SentToken token = SentToken.of(row.getAs(3));
            int at = batch.size();
            System.arraycopy(token.experts(), 0, ids, at * pairs, token.experts().length);
            System.arraycopy(token.weights(), 0, weights, at * pairs, token.weights().length);
            for (int t = at * perRow; t < (at + 1) * perRow; t++) {
                System.arraycopy(token.hidden(), 0, hidden, t * h, h);
            }
            batch.add(row);
        }
        int count = batch.size();
        float[] output = new float[count * perRow * h];
        long start = System.nanoTime();
        engine.forward(
                hidden,
                count * perRow,
                output,
                new ChosenExperts(
                        pairs / perRow, Arrays.copyOf(ids, count * pairs), Arrays.copyOf(weights, count * pairs)));
        engine.took(System.nanoTime() - start, count, plan.scorer().latency().toNanos());
        for (int m = 0; m < count; m++) {
            Row row = batch.get(m);
            ready(RowFactory.create(row.get(0), owner, row.getInt(2), sum(output, m * perRow, perRow, h)));
        }
    }

    private static byte[] sum(float[] output, int first, int tokens, int h) {
        if (tokens == 1) {
            return SentToken.toBytes(output, first * h, h);
        }
        float[] sum = new float[h];
        for (int c = 0; c < h; c++) {
            double total = 0;
            for (int t = first; t < first + tokens; t++) {
                total += output[t * h + c];
            }
            sum[c] = (float) total;
        }
        return SentToken.toBytes(sum, 0, h);
    }

    /** Gives the engine back. A second call does nothing. */
    @Override
    public void close() {
        if (engine != null) {
            engine.release();
            engine = null;
        }
    }
}
