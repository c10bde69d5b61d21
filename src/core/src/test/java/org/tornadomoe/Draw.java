package org.tornadomoe;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.extension.ExtensionContext;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.ArgumentsProvider;
import org.junit.jupiter.params.provider.ArgumentsSource;
import org.junit.jupiter.params.support.AnnotationConsumer;
import org.junit.jupiter.params.support.ParameterDeclarations;

/** Random values for a property: the same for the same seed, and one in eight a bound of its range. */
public final class Draw {
    /** A test that is given a draw of its own for each of the seeds 0 to {@code tries} - 1. */
    @Target(ElementType.METHOD)
    @Retention(RetentionPolicy.RUNTIME)
    @ParameterizedTest(name = "{0}")
    @ArgumentsSource(Seeds.class)
    public @interface Property {
        int tries() default 1000;
    }

    static final class Seeds implements ArgumentsProvider, AnnotationConsumer<Property> {
        private int tries;

        @Override
        public void accept(Property property) {
            tries = property.tries();
        }

        @Override
        public Stream<Arguments> provideArguments(ParameterDeclarations parameters, ExtensionContext context) {
            return LongStream.range(0, tries).mapToObj(seed -> Arguments.of(new Draw(seed)));
        }
    }

    private final long seed;
    private final SplittableRandom random;

    private Draw(long seed) {
        this.seed = seed;
        random = new SplittableRandom(seed);
    }

    private boolean isBound() {
        return random.nextInt(8) == 0;
    }

    public int between(int least, int most) {
        return isBound() ? random.nextBoolean() ? least : most : random.nextInt(least, most + 1);
    }

    public double between(double least, double most) {
        return isBound() ? random.nextBoolean() ? least : most : random.nextDouble(least, most);
    }

    /** One half is uniform over the range, the other over the bits of its floats, so that all magnitudes come. */
    public float between(float least, float most) {
        if (isBound()) {
            return random.nextBoolean() ? least : random.nextBoolean() ? most : 0;
        }
        if (random.nextBoolean()) {
            return (float) random.nextDouble(least, most);
        }
        float any = Float.intBitsToFloat(random.nextInt());
        return any >= least && any <= most ? any : between(least, most);
    }

    public long aLong() {
        return random.nextLong();
    }

    public boolean aBoolean() {
        return random.nextBoolean();
    }

    public <T> T oneOf(List<T> values) {
        return values.get(random.nextInt(values.size()));
    }

    @Override
    public String toString() {
        return "seed " + seed;
    }
}
