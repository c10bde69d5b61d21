package example;

import java.nio.file.Path;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.LongAdder;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.observe.MoeListener;

/** CHECKPOINT: one layer, a hundred virtual threads, and a listener that adds up their calls' times. */
class ManyCallers {
    public static void main(String[] args) {
        LongAdder calls = new LongAdder();
        LongAdder tokens = new LongAdder();
        LongAdder waited = new LongAdder();
        MoeListener listener = new MoeListener() {
            @Override
            public void called(Call call) {
                calls.increment();
                tokens.add(call.tokens());
                waited.add(call.waitNanos());
            }
        };
        MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(4).withLanes(2).withListener(listener);
        try (MoeLayer layer = MoeLayer.load(Path.of(args[0]), 0, options)) {
            float[] hidden = new float[4 * layer.config().hiddenDim()];
            try (ExecutorService callers = Executors.newVirtualThreadPerTaskExecutor()) {
                for (int i = 0; i < 100; i++) {
                    callers.submit(() -> layer.forward(hidden));
                }
            }
            System.out.println(layer.lanes() + " lanes, " + calls + " calls, " + tokens + " tokens, waited "
                    + waited.sum() / 1_000_000 + " ms in all");
        }
    }
}
