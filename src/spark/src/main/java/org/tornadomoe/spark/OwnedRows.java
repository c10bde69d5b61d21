package org.tornadomoe.spark;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.ChosenExperts;

/**
 * The results of an owner's experts for the rows sent to them: (id, owner, number of the row's owners, the sum of their
 * weighted outputs), computed in batches. Holds the owner's engine from the first row until it is closed.
 */
final class OwnedRows extends RowsInBatches implements AutoCloseable {
    private record Owner(int number, Engine engine, TokenRouter router) {}

    private final ExpertParallelScorer plan;
    private final @Nullable String address;
    private @Nullable Owner owner;

    OwnedRows(Iterator<Row> rows, ExpertParallelScorer plan, @Nullable String address) {
        super(rows);
        this.plan = plan;
        this.address = address;
    }

    private Owner owner(int number) {
        Owner mine = owner;
        if (mine == null) {
            TokenRouter router = TokenRouter.of(plan.scorer(), plan.partitioning());
            mine = new Owner(number, Engine.acquire(plan, number, address), router);
            owner = mine;
        }
        if (number != mine.number) {
            throw new IllegalStateException(
                    "expected rows of owner " + mine.number + " alone in its partitions, got one of " + number);
        }
        return mine;
    }

    @Override
    void more() {
        Row first = rows.next();
        Owner owner = owner(first.getInt(1));
        int h = owner.router.hiddenDim();
        int pairs = owner.router.pairsPerRow(owner.number);
        int perRow = owner.router.tokensPerRow(owner.number);
        int most = owner.engine.batch();
        List<Row> batch = new ArrayList<>(most);
        float[] hidden = new float[most * perRow * h];
        int[] ids = new int[most * pairs];
        float[] weights = new float[most * pairs];
        Arrays.fill(ids, -1);
        for (Row row = first; row != null; row = batch.size() < most && rows.hasNext() ? rows.next() : null) {
            owner(row.getInt(1));
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
        owner.engine.forward(
                hidden,
                count * perRow,
                output,
                new ChosenExperts(
                        pairs / perRow, Arrays.copyOf(ids, count * pairs), Arrays.copyOf(weights, count * pairs)));
        owner.engine.took(
                System.nanoTime() - start, count, plan.scorer().latency().toNanos());
        for (int m = 0; m < count; m++) {
            Row row = batch.get(m);
            ready(RowFactory.create(row.get(0), owner.number, row.getInt(2), sum(output, m * perRow, perRow, h)));
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

    /** Releases the engine. A second call does nothing. */
    @Override
    public void close() {
        if (owner != null) {
            owner.engine.release();
            owner = null;
        }
    }
}
