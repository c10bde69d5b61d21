/** A layer over the rows of an Apache Spark dataset. Spark 4.2 is brought by whoever uses it. */
@NullMarked
package org.tornadomoe.spark;

import org.jspecify.annotations.NullMarked;
